#include "tests/faults/fault_injector.h"

#include <signal.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "proto/grpc_status.h"
#include "tests/testing/scripted_job.h"

namespace qpruner {
namespace {

namespace fs = std::filesystem;

void SetDeadline(grpc::ClientContext& context, absl::Duration limit) {
  context.set_deadline(absl::ToChronoTime(absl::Now() + limit));
}

std::string For(absl::Duration duration) {
  return absl::StrFormat(" for %.1f s", absl::ToDoubleSeconds(duration));
}

// Regular files below `folder`, in order.
std::vector<fs::path> FilesBelow(const fs::path& folder) {
  std::vector<fs::path> files;
  std::error_code ignored;
  for (fs::recursive_directory_iterator it(folder, ignored), end; it != end;
       it.increment(ignored)) {
    if (it->is_regular_file(ignored) && it->path().extension() != ".partial") {
      files.push_back(it->path());
    }
  }
  std::sort(files.begin(), files.end());
  return files;
}

// Puts the same bytes with one bit turned in place of a file, which moves to `kept`. Whoever has
// the file open or linked keeps the good one, as from a page cache.
void Damage(const fs::path& path, const fs::path& kept, std::mt19937_64& random) {
  std::ifstream in(path, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(in)), {});
  if (!bytes.empty()) bytes[random() % bytes.size()] ^= 1;
  std::error_code ignored;
  fs::rename(path, kept, ignored);
  std::ofstream(path, std::ios::binary) << bytes;
}

}  // namespace

FaultInjector::FaultInjector(Fleet& fleet, uint64_t seed) : fleet_(fleet), random_(seed) {
  kinds_["kill the server"] = [this] {
    const absl::Duration away = Uniform(absl::Milliseconds(50), absl::Milliseconds(800));
    fleet_.server().Kill();
    server_down_until_ = absl::Now() + away;
    Until(away, [] {});
    return For(away);
  };
  kinds_["kill a worker"] = [this] {
    const size_t worker = AnyWorker();
    if (const pid_t pid = fleet_.WorkerPid(worker)) kill(pid, SIGKILL);
    return absl::StrCat(" (", worker, ")");
  };
  kinds_["drain a worker"] = [this] {
    const size_t worker = AnyWorker();
    if (const pid_t pid = fleet_.WorkerPid(worker)) kill(pid, SIGTERM);
    return absl::StrCat(" (", worker, ")");
  };
  kinds_["kill an engine"] = [this] {
    const std::vector<pid_t> engines = fleet_.Engines();
    if (engines.empty()) return std::string(": none runs");
    kill(engines[random_() % engines.size()], SIGKILL);
    return std::string();
  };
  kinds_["stop the server"] = [this] { return Stop(fleet_.server().pid(), "the server"); };
  kinds_["stop a worker"] = [this] { return Stop(fleet_.WorkerPid(AnyWorker()), "a worker"); };
  kinds_["stop an engine"] = [this] {
    const std::vector<pid_t> engines = fleet_.Engines();
    return Stop(engines.empty() ? 0 : engines[random_() % engines.size()], "an engine");
  };
  kinds_["break the workers' cable"] = [this] {
    return Cable(fleet_.workers_cable(), "the workers' cable");
  };
  kinds_["set the server's clock"] = [this] { return ShiftClock(fleet_.server_clock(), "server"); };
  kinds_["set the workers' clock"] = [this] {
    return ShiftClock(fleet_.workers_clock(), "workers");
  };
  kinds_["damage a stored artifact"] = [this] { return DamageStored(); };
  kinds_["damage a cached artifact"] = [this] { return DamageCached(); };
  kinds_["hold a lease silently"] = [this] { return HoldSilently(); };
  if (fleet_.has_own_disk()) {
    kinds_["fill the server's disk"] = [this] {
      const absl::Duration full = Uniform(absl::Milliseconds(200), absl::Seconds(2));
      fleet_.FillDisk();
      Until(full, [this] { fleet_.FreeDisk(); });
      return For(full);
    };
  }
  if (fleet_.database_cable() != nullptr) {
    kinds_["break the database's cable"] = [this] {
      return Cable(*fleet_.database_cable(), "the database's cable");
    };
    kinds_["restart the database"] = [this] {
      const absl::Status restarted = fleet_.database()->Restart();
      return restarted.ok() ? std::string() : absl::StrCat(": ", restarted.ToString());
    };
  }
}

std::vector<std::string> FaultInjector::kinds() const {
  std::vector<std::string> names;
  for (const auto& [name, kind] : kinds_) names.push_back(name);
  return names;
}

std::string FaultInjector::BeginAny() {
  return Begin(std::next(kinds_.begin(), static_cast<ptrdiff_t>(random_() % kinds_.size()))->first);
}

std::string FaultInjector::Begin(const std::string& kind) {
  return absl::StrCat(kind, kinds_.at(kind)());
}

void FaultInjector::Until(absl::Duration duration, std::function<void()> undo) {
  active_.push_back({absl::Now() + duration, std::move(undo)});
}

void FaultInjector::EndDue() {
  for (auto it = active_.begin(); it != active_.end();) {
    if (absl::Now() < it->end) {
      ++it;
      continue;
    }
    it->undo();
    it = active_.erase(it);
  }
}

absl::Duration FaultInjector::Uniform(absl::Duration from, absl::Duration to) {
  return from + (to - from) * std::uniform_real_distribution<double>(0, 1)(random_);
}

size_t FaultInjector::AnyWorker() { return random_() % fleet_.worker_count(); }

std::string FaultInjector::Cable(TcpProxy& cable, const char* which) {
  const absl::Duration broken =
      Uniform(absl::Milliseconds(100), fleet_.options().lease_duration + absl::Milliseconds(1500));
  switch (random_() % 3) {
    case 0:
      cable.ResetOnce();
      return ": connections reset";
    case 1:
      cable.SetMode(TcpProxy::Mode::kCut);
      Until(broken, [&cable] { cable.SetMode(TcpProxy::Mode::kPass); });
      return absl::StrCat(": cut", For(broken));
    default:
      cable.SetMode(TcpProxy::Mode::kStall);
      Until(broken, [&cable] { cable.SetMode(TcpProxy::Mode::kPass); });
      return absl::StrCat(": silent", For(broken));
  }
}

std::string FaultInjector::Stop(pid_t pid, const char* which) {
  if (pid == 0) return ": none runs";
  // Longer than the lease.
  const absl::Duration stopped =
      fleet_.options().lease_duration + Uniform(absl::Milliseconds(300), absl::Milliseconds(1500));
  kill(pid, SIGSTOP);
  Until(stopped, [pid] { kill(pid, SIGCONT); });
  return For(stopped);
}

std::string FaultInjector::ShiftClock(ShiftedClock& clock, const char* whose) {
  const absl::Duration shift = random_() % 2 == 0 ? absl::Hours(1) : -absl::Hours(1);
  const absl::Duration shifted = Uniform(absl::Milliseconds(500), absl::Seconds(4));
  clock.Set(shift);
  Until(shifted, [&clock] { clock.Set(absl::ZeroDuration()); });
  return absl::StrCat(shift > absl::ZeroDuration() ? " forward" : " back", " by 1 h", For(shifted));
}

std::string FaultInjector::DamageStored() {
  const std::vector<fs::path> files = FilesBelow(fleet_.data_dir() + "/artifacts/objects");
  if (files.empty()) return ": there is none";
  const fs::path path = files[random_() % files.size()];
  const fs::path kept = absl::StrCat(fleet_.data_dir(), "/kept-", path.filename().string());
  // What is kept of a damaged file would be restored last.
  if (fs::exists(kept)) return ": it is damaged already";
  Damage(path, kept, random_);
  const absl::Duration damaged = Uniform(absl::Milliseconds(300), absl::Seconds(1));
  // As an operator restores it from a backup.
  Until(damaged, [path, kept] {
    std::error_code ignored;
    fs::rename(kept, path, ignored);
  });
  return For(damaged);
}

std::string FaultInjector::DamageCached() {
  const size_t worker = AnyWorker();
  const std::vector<fs::path> files = FilesBelow(fleet_.WorkerFolder(worker) + "/cache");
  if (files.empty()) return ": there is none";
  const fs::path kept = fleet_.WorkerFolder(worker) + "/kept";
  Damage(files[random_() % files.size()], kept, random_);
  std::error_code ignored;
  fs::remove(kept, ignored);
  return absl::StrCat(" (worker ", worker, ")");
}

std::string FaultInjector::HoldSilently() {
  const std::string incarnation = absl::StrCat(++silent_count_, "-", random_());
  {
    grpc::ClientContext context;
    SetDeadline(context, absl::Milliseconds(500));
    internal::v1::RegisterWorkerRequest request;
    request.set_worker("silent");
    request.set_incarnation(incarnation);
    internal::v1::RegisterWorkerResponse response;
    if (!fleet_.worker_calls().RegisterWorker(&context, request, &response).ok()) {
      return ": the server is away";
    }
  }
  grpc::ClientContext context;
  SetDeadline(context, absl::Milliseconds(500));
  internal::v1::AcquireTaskRequest request;
  request.set_worker("silent");
  request.set_incarnation(incarnation);
  request.mutable_wait_time()->set_nanos(300'000'000);
  internal::v1::AcquireTaskResponse held;
  if (!fleet_.worker_calls().AcquireTask(&context, request, &held).ok() || !held.has_lease()) {
    return ": none came";
  }
  silent_.push_back(held);
  return absl::StrCat(" (", held.lease().task(), ")");
}

absl::Status FaultInjector::CompleteStaleLeases() {
  for (const internal::v1::AcquireTaskResponse& held : std::exchange(silent_, {})) {
    internal::v1::CompleteTaskRequest request;
    *request.mutable_lease() = held.lease();
    internal::v1::TaskResult& wrong = *request.mutable_result();
    wrong = ScriptedResult(held.task());
    if (wrong.has_trial()) wrong.mutable_trial()->mutable_selection()->set_kl_divergence(1e-9);
    if (wrong.has_prepare()) wrong.mutable_prepare()->mutable_original_test()->set_perplexity(1);
    if (wrong.has_finalize()) wrong.mutable_finalize()->mutable_chosen_test()->set_perplexity(1);
    absl::Status status = absl::UnavailableError("not called");
    for (int tries = 0; tries < 50 && absl::IsUnavailable(status); ++tries) {
      grpc::ClientContext context;
      SetDeadline(context, absl::Seconds(5));
      google::protobuf::Empty response;
      status = FromGrpcStatus(fleet_.worker_calls().CompleteTask(&context, request, &response));
      if (absl::IsUnavailable(status)) absl::SleepFor(absl::Milliseconds(100));
    }
    if (!absl::IsAborted(status)) {
      return absl::DataLossError(absl::StrCat("a stale attempt's result was answered ",
                                              status.ToString(), ": ", held.lease().job(), "/",
                                              held.lease().task()));
    }
  }
  return absl::OkStatus();
}

}  // namespace qpruner
