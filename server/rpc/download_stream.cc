#include "server/rpc/download_stream.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/resource_name.h"
#include "base/status_macros.h"
#include "proto/grpc_status.h"
#include "proto/status_codec.h"
#include "server/rpc/artifact_url.h"

namespace qpruner::server {
namespace {

// Strictly alternates between a read on the executor and a write, so no lock is needed: each step
// starts after the one before it has ended.
class DownloadStream final : public grpc::ServerWriteReactor<v1::DownloadArtifactResponse> {
 public:
  DownloadStream(grpc::CallbackServerContext& context, std::string name, int64_t offset,
                 bool accept_url, JobStore& store, ArtifactStore& artifacts,
                 CallbackExecutor& executor, PeerWatchdog& peers,
                 std::function<absl::Status()> admit, std::function<void()> opened,
                 std::unique_ptr<StreamLimit::Place> place)
      : context_(context),
        name_(std::move(name)),
        admit_(std::move(admit)),
        opened_(std::move(opened)),
        place_(std::move(place)),
        store_(store),
        artifacts_(artifacts),
        executor_(executor),
        peers_(peers),
        accept_url_(accept_url),
        offset_(offset) {
    executor_.Add([this] { Step(); });
  }

  void OnWriteDone(bool ok) override {
    write_wait_.reset();
    if (!ok) {
      Finish(ToGrpcStatus(absl::CancelledError("The client went away")));
      return;
    }
    executor_.Add([this] { Step(); });
  }
  void OnDone() override { delete this; }

 private:
  void Step() {
    chunk_.Clear();
    const bool first = reader_ == nullptr;
    absl::Status status = admit_();
    if (status.ok() && first) status = Open();
    if (status.ok() && first) opened_();
    if (status.ok() && (first || offset_ < reader_->size_bytes())) status = ReadChunk();
    if (!status.ok()) {
      Finish(ToGrpcStatus(status));
    } else if (first || !chunk_.data().empty()) {
      write_wait_.emplace(
          peers_, EndingOf(context_,
                           absl::StrCat("Nothing was read for ",
                                        absl::FormatDuration(peers_.patience()), "; go on later")));
      StartWrite(&chunk_);
    } else {
      Finish(grpc::Status::OK);
    }
  }

  absl::Status Open() {
    absl::StatusOr<ArtifactName> name = ArtifactName::Parse(name_);
    std::vector<FieldViolation> violations;
    if (!name.ok()) violations.push_back({"name", std::string(name.status().message())});
    if (offset_ < 0) {
      violations.push_back({"offset", absl::StrCat("must not be negative, is ", offset_)});
    }
    if (!violations.empty()) return BadRequestError(violations);
    std::vector<v1::Artifact> artifacts;
    RETURN_IF_ERROR(store_.Read([&](StoreReader& reader) -> absl::Status {
      ASSIGN_OR_RETURN(artifacts, reader.ListArtifacts(name->job));
      return absl::OkStatus();
    }));
    const auto found =
        std::find_if(artifacts.begin(), artifacts.end(),
                     [&](const v1::Artifact& artifact) { return artifact.name() == name_; });
    if (found == artifacts.end()) {
      return WithErrorInfo(absl::NotFoundError(absl::StrCat("Artifact not found: ", name_)),
                           "ARTIFACT_NOT_FOUND", {{"artifact", name_}});
    }
    if (offset_ > found->size_bytes()) {
      return WithErrorInfo(
          absl::OutOfRangeError(absl::StrCat("Offset ", offset_, " is beyond the end of ", name_,
                                             ", which has ", found->size_bytes(), " bytes")),
          "OFFSET_BEYOND_END", {{"size_bytes", absl::StrCat(found->size_bytes())}});
    }
    ASSIGN_OR_RETURN(reader_, artifacts_.Open(found->sha256()));
    if (accept_url_) {
      if (auto url =
              UrlInsteadOfBytes(artifacts_, found->sha256(), reader_->size_bytes(), offset_)) {
        *chunk_.mutable_url() = *std::move(url);
        offset_ = reader_->size_bytes();  // Nothing is left to be sent.
      }
    }
    *chunk_.mutable_artifact() = std::move(*found);
    return absl::OkStatus();
  }

  absl::Status ReadChunk() {
    ASSIGN_OR_RETURN(*chunk_.mutable_data(), reader_->Read(offset_, kArtifactChunkBytes));
    offset_ += static_cast<int64_t>(chunk_.data().size());
    return absl::OkStatus();
  }

  grpc::CallbackServerContext& context_;
  const std::string name_;
  const std::function<absl::Status()> admit_;
  const std::function<void()> opened_;
  const std::unique_ptr<StreamLimit::Place> place_;
  JobStore& store_;
  ArtifactStore& artifacts_;
  CallbackExecutor& executor_;
  PeerWatchdog& peers_;
  const bool accept_url_;
  int64_t offset_;
  std::unique_ptr<ArtifactReader> reader_;
  v1::DownloadArtifactResponse chunk_;
  // While a write is in flight.
  std::optional<PeerWatchdog::Wait> write_wait_;
};

}  // namespace

grpc::ServerWriteReactor<v1::DownloadArtifactResponse>* StartDownloadStream(
    grpc::CallbackServerContext& context, const v1::DownloadArtifactRequest& request,
    JobStore& store, ArtifactStore& artifacts, CallbackExecutor& executor, PeerWatchdog& peers,
    std::function<absl::Status()> admit, std::function<void()> opened,
    std::unique_ptr<StreamLimit::Place> place) {
  return new DownloadStream(context, request.name(), request.offset(), request.accept_url(), store,
                            artifacts, executor, peers, std::move(admit), std::move(opened),
                            std::move(place));
}

}  // namespace qpruner::server
