// Texts that would be commands to a database, a shell, a file system or a log.
#include <algorithm>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/types/span.h"
#include "proto/status_codec.h"
#include "server/attack/attack_test.h"
#include "server/testing/postgres_cluster.h"

namespace qpruner::server {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::MethodDescriptor;
using google::protobuf::Reflection;
using google::protobuf::ServiceDescriptor;

TEST_F(AttackTest, MetacharactersAreOnlyText) {
  Start();
  const std::string evil = "'; DROP TABLE jobs; -- $(reboot) `id` %s \" \\ {{x}} <script>";
  v1::CreateJobRequest request = ScriptedRequest();
  request.mutable_job()->set_display_name(evil);
  (*request.mutable_job()->mutable_labels())["team"] = "';--$(id)";
  request.set_request_id(evil.substr(0, 40));
  v1::CompressionJob job;
  ASSERT_TRUE(Call(*jobs_, &v1::JobService::Stub::CreateJob, request, &job).ok());
  v1::GetJobRequest get;
  get.set_name(job.name());
  v1::CompressionJob found;
  ASSERT_TRUE(Call(*jobs_, &v1::JobService::Stub::GetJob, get, &found).ok());
  EXPECT_EQ(found.display_name(), evil);
  EXPECT_EQ(found.labels().at("team"), "';--$(id)");

  v1::ListJobsRequest list;
  (*list.mutable_labels())["team' OR '1'='1"] = "x' OR 'x'='x";
  v1::ListJobsResponse listed;
  const absl::Status status = Call(*jobs_, &v1::JobService::Stub::ListJobs, list, &listed);
  EXPECT_EQ(listed.jobs_size(), 0) << status;
  list.Clear();
  list.set_page_token(evil);
  EXPECT_TRUE(
      absl::IsInvalidArgument(Call(*jobs_, &v1::JobService::Stub::ListJobs, list, &listed)));
  for (const char* name :
       {"projects/default/jobs/a'; DROP TABLE jobs; --", "projects/../jobs/a",
        "projects/default/jobs/$(id)", "projects/default/jobs/a\n{\"audit\":\"DeleteJob\"}"}) {
    get.set_name(name);
    EXPECT_TRUE(absl::IsInvalidArgument(Call(*jobs_, &v1::JobService::Stub::GetJob, get, &found)))
        << name;
  }
  for (const char* uri : {"file:///models/../../etc/passwd", "file://evil.org/x", "/etc/passwd",
                          "builtin://../../etc", "file:///a\n/b", "http://evil.org/model"}) {
    request = ScriptedRequest();
    request.mutable_job()->mutable_spec()->mutable_model()->set_uri(uri);
    EXPECT_TRUE(
        absl::IsInvalidArgument(Call(*jobs_, &v1::JobService::Stub::CreateJob, request, &job)))
        << uri;
  }
}

TEST_F(AttackTest, ListsAskOnlyForLabelsThatAJobCanHave) {
  Start();
  v1::ListJobsRequest request;
  v1::ListJobsResponse response;
  (*request.mutable_labels())["a"] = std::string("\0", 1);
  const absl::Status status = Call(*jobs_, &v1::JobService::Stub::ListJobs, request, &response);
  ASSERT_EQ(FieldViolations(status).size(), 1u) << status;
  EXPECT_EQ(FieldViolations(status)[0].field, "labels[a]");
}

// Every string of every message, by the descriptors: a field that is added tomorrow is attacked,
// too. The parameter says whether the jobs are in PostgreSQL.
class HostileTextTest : public AttackTest, public testing::WithParamInterface<bool> {
 protected:
  // From a request's message down to a string.
  using FieldPath = std::vector<const FieldDescriptor*>;

  static void FindStrings(const Descriptor& message, FieldPath& at, std::vector<FieldPath>& found) {
    for (int i = 0; i < message.field_count(); ++i) {
      const FieldDescriptor* field = message.field(i);
#ifdef __SANITIZE_THREAD__
      // Protobuf's headers lay maps out otherwise for this sanitizer than the library was built
      // with, whose reflection then reads beside them.
      if (field->is_map()) continue;
#endif
      at.push_back(field);
      if (field->type() == FieldDescriptor::TYPE_STRING) {
        found.push_back(at);
      } else if (field->message_type() != nullptr && std::count(at.begin(), at.end(), field) == 1) {
        FindStrings(*field->message_type(), at, found);
      }
      at.pop_back();
    }
  }
  // In the first of what is repeated, which is added if there is none.
  static void SetString(Message& message, absl::Span<const FieldDescriptor* const> path,
                        const std::string& text) {
    const Reflection& reflection = *message.GetReflection();
    const FieldDescriptor* field = path[0];
    const bool absent = field->is_repeated() && reflection.FieldSize(message, field) == 0;
    if (path.size() == 1 && !field->is_repeated()) {
      reflection.SetString(&message, field, text);
    } else if (path.size() == 1 && absent) {
      reflection.AddString(&message, field, text);
    } else if (path.size() == 1) {
      reflection.SetRepeatedString(&message, field, 0, text);
    } else {
      SetString(!field->is_repeated() ? *reflection.MutableMessage(&message, field)
                : absent              ? *reflection.AddMessage(&message, field)
                                      : *reflection.MutableRepeatedMessage(&message, field, 0),
                path.subspan(1), text);
    }
  }

  void StartOnStore() {
    ServerOptions options;
    if (GetParam()) {
      options.postgres = PostgresOptions{.url = url_};
      options.artifacts_dir = folder_.path() + "/artifacts";
    }
    Start(std::move(options));
  }
  void Register(const std::string& worker) {
    internal::v1::RegisterWorkerRequest request;
    request.set_worker(worker);
    request.set_incarnation("a");
    internal::v1::RegisterWorkerResponse response;
    EXPECT_TRUE(Call(*workers_, &WorkerStub::RegisterWorker, request, &response).ok());
  }
  // Of a job that is there for it, if the last one is over: results and errors end it.
  const internal::v1::AcquireTaskResponse& CurrentLease() {
    internal::v1::HeartbeatRequest heartbeat;
    *heartbeat.mutable_lease() = held_.lease();
    internal::v1::HeartbeatResponse beat;
    if (Call(*workers_, &WorkerStub::Heartbeat, heartbeat, &beat).ok()) return held_;
    Create();
    ++job_count_;
    held_ = Lease();
    const MethodDescriptor& upload = *WorkerServiceMethods()->FindMethodByName("UploadArtifact");
    for (const std::string& path : OutputsOf(held_.task())) {
      internal::v1::UploadArtifactRequest request;
      *request.mutable_lease() = held_.lease();
      *request.mutable_ref() = ArtifactOf(path, ContentOf(path));
      request.set_data(ContentOf(path));
      EXPECT_TRUE(CallAny(channel_, upload, request, {}).ok());
    }
    return held_;
  }
  // One that would be answered with OK, or nearly, so that the text comes as far as it can.
  std::unique_ptr<Message> GoodRequest(const MethodDescriptor& method) {
    if (method.name() == "CreateJob")
      return std::make_unique<v1::CreateJobRequest>(ScriptedRequest());
    if (auto about_job = RequestAbout(method, victim_)) return about_job;
    auto request = NewRequest(method);
    const Descriptor& type = *method.input_type();
    const Reflection& reflection = *request->GetReflection();
    const auto set = [&](const char* field, const Message& value) {
      const FieldDescriptor* descriptor = type.FindFieldByName(field);
      if (descriptor == nullptr) return;
      Message* to = descriptor->is_repeated()
                        ? reflection.AddMessage(request.get(), descriptor)
                        : reflection.MutableMessage(request.get(), descriptor);
      to->CopyFrom(value);
    };
    if (type.FindFieldByName("lease") != nullptr) {
      set("lease", CurrentLease().lease());
      set("ref", ArtifactOf(method.name() == "SaveCheckpoint" ? "checkpoint/x" : "model/x", "x"));
      if (held_.has_task()) set("result", ScriptedResult(held_.task()));
    }
    if (type.FindFieldByName("worker") != nullptr) {
      // Not the one that holds the lease: another process of that would end it.
      Register("w9");
      reflection.SetString(request.get(), type.FindFieldByName("worker"), "w9");
      reflection.SetString(request.get(), type.FindFieldByName("incarnation"), "a");
    }
    return request;
  }
  std::map<std::string, std::string> Jobs() {
    std::map<std::string, std::string> jobs;
    v1::ListJobsRequest request;
    request.set_page_size(500);
    v1::ListJobsResponse page;
    do {
      page.Clear();
      const absl::Status status = Call(*jobs_, &v1::JobService::Stub::ListJobs, request, &page);
      EXPECT_TRUE(status.ok()) << status;
      for (const v1::CompressionJob& job : page.jobs()) jobs[job.name()] = job.SerializeAsString();
      request.set_page_token(page.next_page_token());
    } while (!page.next_page_token().empty());
    return jobs;
  }

  using WorkerStub = internal::v1::WorkerService::Stub;
  std::string url_;
  // PAUSED: nobody works on it.
  std::string victim_;
  size_t job_count_ = 0;
  internal::v1::AcquireTaskResponse held_;
};

TEST_P(HostileTextTest, IsOnlyTextInEveryFieldOfEveryMethod) {
  if (GetParam()) {
    if (PostgresCluster::Shared() == nullptr) GTEST_SKIP() << "PostgreSQL cannot be run here";
    url_ = PostgresCluster::Shared()->NewDatabase();
  }
  StartOnStore();
  victim_ = Create();
  ++job_count_;
  const MethodDescriptor& pause = *JobServiceMethods()->FindMethodByName("PauseJob");
  ASSERT_TRUE(CallAny(channel_, pause, *RequestAbout(pause, victim_), {}).ok());
  const std::string untouched = Jobs()[victim_];

  const std::string made = folder_.path() + "/made";
  std::vector<std::string> texts = {
      "'; DROP TABLE jobs; --",
      "' OR '1'='1",
      "\\'); DELETE FROM qpruner.jobs; COMMIT; --",
      absl::StrCat("$(touch ", made, ")"),
      absl::StrCat("`touch ", made, "`"),
      absl::StrCat("; touch ", made, " | touch ", made, " & "),
      "../../etc/passwd",
      "%s%n%s%n{}{0}",
      std::string("a\0b", 3),
      "\r\ninfo {\"audit\":\"DeleteJob\"}\x1b[2J",
      "\xE2\x80\xAE\xF0\x9F\x98\x80",
      std::string(100'000, 'x'),
  };
#ifdef __SANITIZE_THREAD__
  // It looks for races, which are the same for all texts, and takes ten minutes for them.
  texts.resize(2);
#endif
  int strings = 0;
  const auto attack = [&](const MethodDescriptor& method, const std::vector<FieldPath>& paths,
                          const std::string& text) {
    const std::unique_ptr<Message> request = GoodRequest(method);
    for (const FieldPath& path : paths) SetString(*request, path, text);
    if (auto* complete = dynamic_cast<internal::v1::CompleteTaskRequest*>(request.get());
        complete != nullptr && complete->has_error()) {
      complete->mutable_error()->set_code(13);  // Or it is none.
    }
    const absl::Status status = CallAny(channel_, method, *request, {});
    // Nor is it that the refusal is too long to be sent.
    const bool sent = !absl::StrContains(status.message(), "metadata");
    EXPECT_TRUE(sent && !absl::IsInternal(status) && !absl::IsUnknown(status) &&
                !absl::IsUnavailable(status) && !absl::IsDeadlineExceeded(status))
        << method.full_name() << " with \"" << absl::CEscape(text.substr(0, 100)) << "\" as "
        << paths.back().back()->full_name() << ": " << status;
    if (method.name() == "CreateJob" && status.ok()) ++job_count_;
  };
  for (const ServiceDescriptor* service : {JobServiceMethods(), WorkerServiceMethods()}) {
    for (int i = 0; i < service->method_count(); ++i) {
      const MethodDescriptor& method = *service->method(i);
      std::vector<FieldPath> paths;
      FieldPath at;
      FindStrings(*method.input_type(), at, paths);
      strings += static_cast<int>(paths.size());
      for (const std::string& text : texts) {
        for (const FieldPath& path : paths) attack(method, {path}, text);
        if (paths.size() > 1) attack(method, paths, text);
      }
    }
  }
  EXPECT_GT(strings, 80);

  EXPECT_FALSE(std::filesystem::exists(made));
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_.path())) {
    EXPECT_EQ(entry.path().string().find_first_of("';$`%\n\x1b"), std::string::npos)
        << entry.path();
    EXPECT_NE(entry.path().filename(), "passwd");
  }
  // All jobs are there, also for who opens the store anew, and it works.
  for (int i = 0; i < 2; ++i) {
    std::map<std::string, std::string> jobs = Jobs();
    EXPECT_EQ(jobs.size(), job_count_);
    EXPECT_EQ(jobs[victim_], untouched);
    held_.Clear();
    EXPECT_TRUE(CurrentLease().has_task());
    server_.reset();
    StartOnStore();
  }
}

INSTANTIATE_TEST_SUITE_P(Stores, HostileTextTest, testing::Bool(),
                         [](const auto& info) { return info.param ? "Postgres" : "Sqlite"; });

}  // namespace
}  // namespace qpruner::server
