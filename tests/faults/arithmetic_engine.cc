// Speaks the engine's protocol; its work is the arithmetic of tests/testing/scripted_job.h, with
// the real files, after QPRUNER_TASK_MILLISECONDS. What faults are thrown at by the thousand.
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/sha256.h"
#include "proto/message_stream.h"
#include "proto/status_codec.h"
#include "qpruner/internal/v1/engine.pb.h"
#include "tests/testing/scripted_job.h"

namespace qpruner {
namespace {

namespace fs = std::filesystem;
using internal::v1::EngineReply;
using internal::v1::EngineRequest;

constexpr int kAgentFd = 3;
constexpr int kProgressSteps = 4;

int TaskMilliseconds() {
  const char* text = getenv("QPRUNER_TASK_MILLISECONDS");
  int milliseconds = 0;
  return text != nullptr && absl::SimpleAtoi(text, &milliseconds) ? milliseconds : 20;
}

// A damaged input must never reach an engine.
absl::Status CheckInputs(const EngineRequest& request) {
  for (const internal::v1::ArtifactRef& input : request.task().inputs()) {
    const auto digest = Sha256OfFile((fs::path(request.input_dir()) / input.path()).string());
    if (!digest.ok() || *digest != input.sha256()) {
      return absl::DataLossError(absl::StrCat("Input is damaged: ", input.path()));
    }
  }
  return absl::OkStatus();
}

void WriteOutputs(const EngineRequest& request) {
  for (const std::string& path : OutputsOf(request.task())) {
    const fs::path file = fs::path(request.output_dir()) / path;
    fs::create_directories(file.parent_path());
    std::ofstream(file, std::ios::binary) << ContentOf(path);
  }
}

void Serve() {
  MessageStream agent(kAgentFd);
  EngineReply hello;
  hello.mutable_hello()->set_device("arithmetic");
  hello.mutable_hello()->set_version("0.0.1");
  if (!agent.Write(hello).ok()) return;
  const int milliseconds = TaskMilliseconds();
  EngineRequest request;
  while (agent.Read(request).ok()) {
    EngineReply reply;
    reply.set_request_id(request.request_id());
    for (int step = 1; step <= kProgressSteps; ++step) {
      usleep(static_cast<useconds_t>(milliseconds * 1000 / kProgressSteps));
      EngineReply progress;
      progress.set_request_id(request.request_id());
      progress.mutable_progress()->set_fraction(step / (kProgressSteps + 1.0));
      progress.mutable_progress()->set_message(absl::StrCat("step ", step));
      if (!agent.Write(progress).ok()) return;
    }
    if (const absl::Status inputs = CheckInputs(request); inputs.ok()) {
      WriteOutputs(request);
      *reply.mutable_result() = ScriptedResult(request.task());
    } else {
      *reply.mutable_error() = ToRpcStatus(inputs);
    }
    if (!agent.Write(reply).ok()) return;
  }
}

}  // namespace
}  // namespace qpruner

int main() {
  signal(SIGPIPE, SIG_IGN);
  qpruner::Serve();
}
