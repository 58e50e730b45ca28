// qpruner-engine: the numerical work, as a child process of the agent. It speaks engine.proto on
// descriptor 3 and ends when the agent closes it.
#include <ATen/Parallel.h>
#include <sys/socket.h>

#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "base/clock.h"
#include "base/utf8.h"
#include "proto/engine_errors.h"
#include "proto/message_stream.h"
#include "proto/status_codec.h"
#include "qpruner/internal/v1/engine.pb.h"
#include "worker/engine/confinement/confinement.h"
#include "worker/engine/model/devices.h"
#include "worker/engine/tasks/progress.h"
#include "worker/engine/tasks/task_runner.h"

namespace qpruner::engine {
namespace {

using internal::v1::EngineReply;
using internal::v1::EngineRequest;

constexpr int kAgentFd = 3;
// The protocol promises a word a second.
constexpr std::chrono::milliseconds kBeat(250);

// Tells the agent how far the task is, at every beat of its own thread, however long the work goes
// without reporting.
class BeatingReporter final : public ProgressReporter {
 public:
  BeatingReporter(MessageStream& agent, int64_t request_id, std::string output_dir)
      : agent_(agent),
        output_dir_(std::move(output_dir)),
        thread_([this, request_id](std::stop_token stop) { Beat(request_id, std::move(stop)); }) {}
  // Tells the last lines.
  ~BeatingReporter() override {
    thread_.request_stop();
    thread_.join();
  }

  void Report(double fraction, const std::string& message) override {
    std::lock_guard lock(mutex_);
    progress_.set_fraction(fraction);
    progress_.set_message(ToUtf8(message));
  }
  void Log(const std::string& text, bool warning) override {
    std::lock_guard lock(mutex_);
    auto& line = *progress_.add_logs();
    line.set_text(ToUtf8(text));
    line.set_severity(warning ? v1::JobEvent::LogLine::WARNING : v1::JobEvent::LogLine::INFO);
  }

  void Checkpoint(const std::vector<std::string>& paths) override {
    std::map<std::string, internal::v1::ArtifactRef> described;
    google::protobuf::RepeatedPtrField<internal::v1::ArtifactRef> files;
    for (const std::string& path : paths) {
      const auto known = described_.find(path);
      const absl::StatusOr<internal::v1::ArtifactRef> ref =
          known != described_.end() ? known->second : DescribeOutput(output_dir_, path);
      if (!ref.ok()) return Log(std::string(ref.status().message()), /*warning=*/true);
      described[path] = *files.Add() = *ref;
    }
    described_ = std::move(described);
    std::lock_guard lock(mutex_);
    progress_.mutable_checkpoint()->Swap(&files);
  }

 private:
  void Beat(int64_t request_id, std::stop_token stop) {
    while (true) {
      {
        std::unique_lock lock(mutex_);
        wake_.wait_for(lock, stop, kBeat, [] { return false; });
        if (stop.stop_requested() && progress_.logs().empty()) return;
      }
      EngineReply reply;
      reply.set_request_id(request_id);
      {
        std::lock_guard lock(mutex_);
        *reply.mutable_progress() = progress_;
        progress_.clear_logs();
        progress_.clear_checkpoint();
      }
      // An agent that is gone ends the main loop.
      agent_.Write(reply).IgnoreError();
      if (stop.stop_requested()) return;
    }
  }

  MessageStream& agent_;
  const std::string output_dir_;
  // Of the last checkpoint, by path.
  std::map<std::string, internal::v1::ArtifactRef> described_;
  std::mutex mutex_;
  std::condition_variable_any wake_;
  EngineReply::TaskProgress progress_;  // Protected by mutex_.
  std::jthread thread_;                 // Last: it uses all of the above.
};

absl::StatusOr<at::Device> ChooseDevice(const std::string& name) {
  if (name == "cpu") return at::Device(at::kCPU);
  const int64_t count = CudaDeviceCount();
  if (name == "auto") return count > 0 ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
  absl::string_view index_text = name;
  int index = 0;
  if (!absl::ConsumePrefix(&index_text, "cuda:") || !absl::SimpleAtoi(index_text, &index)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--device must be auto, cpu or cuda:N, is \"", name, "\""));
  }
  if (index < 0 || index >= count) {
    return absl::NotFoundError(absl::StrCat("No such device: ", name, "; there are ", count));
  }
  return at::Device(at::kCUDA, static_cast<at::DeviceIndex>(index));
}

int Main(int argc, char** argv) {
  std::string device_name = "auto";
  int threads = 0;
  std::string confinement_name = "auto";
  ConfinementOptions options;
  CLI::App app("The engine of a QPruner worker. Started by qpruner-worker, not by people.",
               "qpruner-engine");
  app.add_option("--device", device_name, "auto, cpu or cuda:N")->capture_default_str();
  app.add_option("--threads", threads, "CPU threads; 0: one a core")->capture_default_str();
  app.add_option("--confinement", confinement_name,
                 "required: end if the kernel cannot confine files and network; auto: say so; off")
      ->check(CLI::IsMember({"required", "auto", "off"}))
      ->capture_default_str();
  app.add_option("--writable", options.writable, "Folder that files may be written below");
  app.add_option("--readable", options.readable,
                 "Folder that files may be read below, besides the system's; none: all");
  app.add_option("--memory-bytes", options.memory_bytes, "0: what the machine or container has");
  app.add_option("--file-bytes", options.file_bytes, "Of a file that is written; 0: no limit");
  app.add_option("--cpus", options.cpus, "Processors that all threads may run on; 0: all");
  app.add_option("--first-cpu", options.first_cpu, "The first of them, from 0");
  app.set_version_flag("--version", QPRUNER_VERSION);
  CLI11_PARSE(app, argc, argv);

  int type = 0;
  socklen_t size = sizeof type;
  if (getsockopt(kAgentFd, SOL_SOCKET, SO_TYPE, &type, &size) != 0 || type != SOCK_STREAM) {
    std::cerr << "qpruner-engine is started by qpruner-worker: descriptor 3 must be its socket\n";
    return 2;
  }
  Confinement confinement;
  if (confinement_name != "off") {
    // Before any driver is asked: that starts threads.
    options.local_sockets = device_name != "cpu" && std::filesystem::exists("/dev/nvidiactl");
    absl::Status status = Confine(options, confinement);
    if (status.ok() && confinement_name == "required" &&
        !(confinement.files && confinement.system_calls)) {
      status = absl::FailedPreconditionError(absl::StrCat(
          "The engine cannot be confined: ", absl::StrJoin(confinement.missing, "; ")));
    }
    if (!status.ok()) {
      std::cerr << status.message() << "\n";
      return 2;
    }
  }
  const absl::StatusOr<at::Device> device = ChooseDevice(device_name);
  if (!device.ok()) {
    std::cerr << device.status().message() << "\n";
    return 2;
  }
  at::set_num_threads(threads > 0 ? threads
                                  : static_cast<int>(std::thread::hardware_concurrency()));

  MessageStream agent(kAgentFd);
  EngineReply hello;
  hello.mutable_hello()->set_device(device->str());
  hello.mutable_hello()->set_device_memory_bytes(DeviceMemoryBytes(*device));
  hello.mutable_hello()->set_version(QPRUNER_VERSION);
  hello.mutable_hello()->set_confinement(confinement.Describe());
  for (const std::string& missing : confinement.missing) {
    hello.mutable_hello()->add_not_confined(missing);
  }
  if (!agent.Write(hello).ok()) return 1;

  TaskRunner runner(*device, RealClock());
  while (true) {
    EngineRequest request;
    if (absl::Status status = agent.Read(request); !status.ok()) {
      if (absl::IsOutOfRange(status)) return 0;
      std::cerr << status.message() << "\n";
      return 1;
    }
    absl::StatusOr<internal::v1::TaskResult> result = absl::UnknownError("");
    {
      BeatingReporter progress(agent, request.request_id(), request.output_dir());
      result = runner.Run(request, progress);
    }
    EngineReply reply;
    reply.set_request_id(request.request_id());
    if (result.ok()) {
      *reply.mutable_result() = *std::move(result);
    } else {
      *reply.mutable_error() = ToRpcStatus(result.status());
    }
    if (!agent.Write(reply).ok()) return 1;
    if (ErrorReason(result.status()) == kDeviceLost) {
      std::cerr << "the device is lost: " << result.status().message() << "\n";
      std::_Exit(1);  // Destructors would ask the device again.
    }
  }
}

}  // namespace
}  // namespace qpruner::engine

int main(int argc, char** argv) { return qpruner::engine::Main(argc, argv); }
