// Speaks the engine's protocol and does what the task's model URI says: the engine that the agent's
// tests run. Everything a real engine may do to its agent is here, death included.
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/sha256.h"
#include "proto/engine_errors.h"
#include "proto/message_stream.h"
#include "proto/status_codec.h"
#include "qpruner/internal/v1/engine.pb.h"

namespace qpruner {
namespace {

namespace fs = std::filesystem;
using internal::v1::EngineReply;
using internal::v1::EngineRequest;

constexpr int kAgentFd = 3;

// A child of the engine that would live for ever.
pid_t Grandchild() {
  const pid_t pid = fork();
  if (pid == 0) {
    while (true) pause();
  }
  return pid;
}

internal::v1::ArtifactRef Describe(const EngineRequest& request, const std::string& path) {
  const fs::path file = fs::path(request.output_dir()) / path;
  internal::v1::ArtifactRef ref;
  ref.set_path(path);
  ref.set_sha256(*Sha256OfFile(file.string()));
  ref.set_size_bytes(static_cast<int64_t>(fs::file_size(file)));
  return ref;
}

// Makes the outputs prepared/a, b and c. After a and b it tells a checkpoint of all outputs that
// are there and a file that says so, in place of the one before.
void TellCheckpoints(const EngineRequest& request, MessageStream& agent, EngineReply& reply) {
  std::vector<std::string> outputs;
  for (const char* content : {"a", "b", "c"}) {
    const fs::path folder = request.output_dir();
    fs::create_directories(folder / "prepared");
    fs::create_directories(folder / "checkpoint");
    outputs.push_back(absl::StrCat("prepared/", content));
    std::ofstream(folder / outputs.back()) << content;
    *reply.mutable_result()->add_outputs() = Describe(request, outputs.back());
    if (std::string(content) == "c") break;
    const std::string state = absl::StrCat("checkpoint/after-", content);
    std::ofstream(folder / state) << "after " << content;
    EngineReply progress;
    progress.set_request_id(request.request_id());
    for (const std::string& output : outputs) {
      *progress.mutable_progress()->add_checkpoint() = Describe(request, output);
    }
    *progress.mutable_progress()->add_checkpoint() = Describe(request, state);
    if (!agent.Write(progress).ok()) return;
    while (!fs::exists(folder / absl::StrCat("go-", content))) {
      if (fs::exists(folder / absl::StrCat("die-", content))) abort();
      usleep(1000);
    }
  }
  reply.mutable_result()->mutable_trial();
}

// Copies each input to outputs/copy/.
void Copy(const EngineRequest& request, EngineReply& reply) {
  for (const auto& input : request.task().inputs()) {
    const fs::path from = fs::path(request.input_dir()) / input.path();
    const std::string path = absl::StrCat("copy/", input.path());
    const fs::path to = fs::path(request.output_dir()) / path;
    fs::create_directories(to.parent_path());
    fs::copy_file(from, to);
    *reply.mutable_result()->add_outputs() = Describe(request, path);
  }
  // Tells the tests which process answered, and how often it had worked.
  reply.mutable_result()->mutable_use()->set_peak_host_memory_bytes(getpid());
  reply.mutable_result()->mutable_trial()->mutable_selection()->set_token_count(
      request.request_id());
}

void Serve() {
  const rlimit no_core{0, 0};
  setrlimit(RLIMIT_CORE, &no_core);
  MessageStream agent(kAgentFd);
  EngineReply hello;
  hello.mutable_hello()->set_device("scripted");
  hello.mutable_hello()->set_device_memory_bytes(123);
  hello.mutable_hello()->set_version("0.0.1");
  if (!agent.Write(hello).ok()) return;
  EngineRequest request;
  while (agent.Read(request).ok()) {
    const std::string& script = request.task().spec().model().uri();
    EngineReply reply;
    reply.set_request_id(request.request_id());
    if (script.rfind("hf://", 0) == 0) {
      // Tells what the agent has brought.
      std::set<std::string> names;
      std::error_code ignored;
      for (const auto& entry : fs::directory_iterator(request.input_dir() + "/source", ignored)) {
        names.insert(entry.path().filename().string());
      }
      for (const std::string& name : names)
        reply.mutable_result()->mutable_prepare()->add_notes(name);
    } else if (script == "copy") {
      Copy(request, reply);
    } else if (script == "checkpoints") {
      TellCheckpoints(request, agent, reply);
    } else if (script == "progress") {
      EngineReply progress;
      progress.set_request_id(request.request_id());
      progress.mutable_progress()->set_fraction(0.5);
      progress.mutable_progress()->set_message("half way");
      progress.mutable_progress()->add_logs()->set_text("a line");
      if (!agent.Write(progress).ok()) return;
      // Waits to be told to go on by the file's coming.
      while (!fs::exists(fs::path(request.output_dir()) / "go")) usleep(1000);
      reply.mutable_result()->mutable_trial();
    } else if (script == "hang") {
      EngineReply progress;
      progress.set_request_id(request.request_id());
      progress.mutable_progress()->set_message(absl::StrCat(getpid(), " ", Grandchild()));
      if (!agent.Write(progress).ok()) return;
      while (true) pause();
    } else if (script == "error") {
      *reply.mutable_error() = ToRpcStatus(absl::InvalidArgumentError("No such architecture"));
    } else if (script == "device lost") {
      // And does not end, as one that hangs in its driver.
      *reply.mutable_error() =
          ToRpcStatus(WithErrorInfo(absl::InternalError("CUDA error"), kDeviceLost));
    } else if (script == "environment") {
      for (char** entry = environ; *entry != nullptr; ++entry) {
        reply.mutable_result()->mutable_prepare()->add_notes(*entry);
      }
    } else if (script == "abort") {
      abort();
    } else if (script == "exit") {
      exit(3);
    } else if (script == "orphan") {
      Grandchild();
      kill(getpid(), SIGKILL);
    } else if (script == "garbage") {
      [[maybe_unused]] const ssize_t put = write(kAgentFd, "\xff\xff\xff\xff\xff", 5);
      while (true) pause();
    } else if (script == "half") {
      // A length of 5, and two bytes.
      [[maybe_unused]] const ssize_t put = write(kAgentFd,
                                                 "\x05"
                                                 "ab",
                                                 3);
      while (true) pause();
    } else {
      while (true) pause();  // Silent.
    }
    if (!agent.Write(reply).ok()) return;
  }
}

}  // namespace
}  // namespace qpruner

int main(int argc, char** argv) {
  if (argc > 1 && std::string(argv[1]) == "--mute") exit(1);
  qpruner::Serve();
}
