// Claim 4 of docs/evidence.md: kill -9 of any process in any stage changes nothing about the
// result.
#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>

#include "gtest/gtest.h"
#include "tests/end_to_end/service_under_test.h"

namespace qpruner {
namespace {

enum class Victim { kEngine, kWorker, kServer };

struct Fault {
  Victim victim;
  v1::CompressionJob::Stage stage;
};

std::string Name(const Fault& fault) {
  const char* victims[] = {"Engine", "Worker", "Server"};
  return std::string(victims[static_cast<int>(fault.victim)]) + "In" +
         v1::CompressionJob::Stage_Name(fault.stage);
}

// The same for all faults: computed once.
const std::string& UndisturbedOutcome() {
  static const std::string& outcome = *new std::string([] {
    ServiceUnderTest service(1);
    service.Start();
    const std::string name = Create(service, SmallJob()).name();
    FollowJob(service, name, absl::Minutes(4));
    return Outcome(service, name);
  }());
  return outcome;
}

class KillNine : public testing::TestWithParam<Fault> {};

TEST_P(KillNine, ChangesNothingAboutTheResult) {
  const Fault fault = GetParam();
  ServiceUnderTest service(1);
  ASSERT_NO_FATAL_FAILURE(service.Start());
  const std::string name = Create(service, SmallJob()).name();
  bool killed = false;
  int finished_trials = 0;
  auto due = [&](const v1::JobEvent& event) {
    if (fault.stage == v1::CompressionJob::SEARCH) {
      // In the middle: some trials are finished, others are not.
      finished_trials +=
          event.has_trial_updated() && event.trial_updated().state() == v1::Trial::SUCCEEDED;
      return finished_trials >= 3;
    }
    return event.has_state_changed() && event.state_changed().stage() == fault.stage;
  };
  const std::vector<v1::JobEvent> events =
      FollowJob(service, name, absl::Minutes(4), [&](const v1::JobEvent& event) {
        if (killed || !due(event)) return;
        killed = true;
        ASSERT_TRUE(ServiceUnderTest::WaitUntil(absl::Seconds(20),
                                                [&] { return !service.Engines().empty(); }));
        switch (fault.victim) {
          case Victim::kEngine:
            for (pid_t pid : service.Engines()) kill(pid, SIGKILL);
            break;
          case Victim::kWorker:
            for (pid_t pid : service.Workers()) kill(pid, SIGKILL);
            break;
          case Victim::kServer:
            service.KillServer();
            service.Start();
            break;
        }
      });
  ASSERT_TRUE(killed);
  EXPECT_EQ(Outcome(service, name), UndisturbedOutcome());
  // A finished trial was never run again.
  std::map<int, int> successes;
  std::set<int> reopened;
  for (const v1::JobEvent& event : events) {
    if (!event.has_trial_updated()) continue;
    const v1::Trial& trial = event.trial_updated();
    if (trial.state() == v1::Trial::SUCCEEDED) {
      ++successes[trial.index()];
    } else if (successes.count(trial.index())) {
      reopened.insert(trial.index());
    }
  }
  EXPECT_TRUE(reopened.empty());
  for (const auto& [index, count] : successes) EXPECT_EQ(count, 1) << "trial " << index;
}

// What was trained up to the last checkpoint is not trained again.
TEST(Recovery, GoesOnFromItsCheckpointWhenItsEngineIsKilled) {
  v1::CompressionJob job = JobWithLongFineTuning();
  ServiceUnderTest service(1);
  ASSERT_NO_FATAL_FAILURE(service.Start());
  const std::string undisturbed = Create(service, job).name();
  FollowJob(service, undisturbed, absl::Minutes(4));

  const std::string name = Create(service, job).name();
  bool killed = false;
  std::vector<std::string> lines;
  const std::vector<v1::JobEvent> events =
      FollowJob(service, name, absl::Minutes(4), [&](const v1::JobEvent& event) {
        if (!event.has_log()) return;
        lines.push_back(event.log().text());
        if (killed || lines.back().find("Fine-tuning step 40 of 60") == std::string::npos) return;
        killed = true;
        for (pid_t pid : service.Engines()) kill(pid, SIGKILL);
      });
  ASSERT_TRUE(killed);
  EXPECT_EQ(Outcome(service, name), Outcome(service, undisturbed));
  // The engine may have been steps ahead of the line that it was killed at; the checkpoint of step
  // 30 was there in any case.
  const auto resumed = std::find_if(lines.begin(), lines.end(), [](const std::string& line) {
    return line.find("Fine-tuning goes on after step ") != std::string::npos;
  });
  ASSERT_NE(resumed, lines.end());
  int step = 0;
  ASSERT_EQ(sscanf(resumed->c_str(), "Fine-tuning goes on after step %d", &step), 1);
  EXPECT_GE(step, 30);
  EXPECT_EQ(std::count_if(lines.begin(), lines.end(),
                          [](const std::string& line) {
                            return line.find("Fine-tuning step 25 of 60") != std::string::npos;
                          }),
            1);
}

// Whether the server keeps what PREPARE has made of a block, for its next attempt.
bool KeepsABlock(ServiceUnderTest& service, const std::string& job) {
  grpc::ClientContext context;
  v1::ListArtifactsRequest request;
  v1::ListArtifactsResponse response;
  request.set_parent(job);
  if (!service.jobs().ListArtifacts(&context, request, &response).ok()) return false;
  return std::any_of(response.artifacts().begin(), response.artifacts().end(),
                     [](const v1::Artifact& artifact) {
                       return artifact.name().find("checkpoint/outputs/prepared/weights/block-") !=
                              std::string::npos;
                     });
}

// What was measured, pruned and quantized is not done again.
TEST(Recovery, GoesOnWithPreparingWhenItsEngineIsKilled) {
  const v1::CompressionJob job = JobWithLongPreparation();
  ServiceUnderTest service(1);
  ASSERT_NO_FATAL_FAILURE(service.Start());
  const std::string undisturbed = Create(service, job).name();
  FollowJob(service, undisturbed, absl::Minutes(6));

  const std::string name = Create(service, job).name();
  bool killed = false;
  std::vector<std::string> lines;
  FollowJob(service, name, absl::Minutes(6), [&](const v1::JobEvent& event) {
    if (event.has_log()) lines.push_back(event.log().text());
    if (killed || !KeepsABlock(service, name)) return;
    killed = true;
    for (pid_t pid : service.Engines()) kill(pid, SIGKILL);
  });
  ASSERT_TRUE(killed);
  EXPECT_EQ(Outcome(service, name), Outcome(service, undisturbed));
  const auto has = [&](const std::string& text) {
    return std::find_if(lines.begin(), lines.end(), [&](const std::string& line) {
      return line.find(text) != std::string::npos;
    });
  };
  EXPECT_NE(has("killed by signal 9"), lines.end());
  EXPECT_NE(has("Preparing goes on from the measured model"), lines.end());
  const auto resumed = has("GPTQ goes on after ");
  ASSERT_NE(resumed, lines.end());
  int blocks = 0;
  ASSERT_EQ(sscanf(resumed->c_str(), "GPTQ goes on after %d", &blocks), 1);
  EXPECT_GT(blocks, 0);
}

INSTANTIATE_TEST_SUITE_P(AnyProcessInAnyStage, KillNine,
                         testing::Values(Fault{Victim::kEngine, v1::CompressionJob::PREPARE},
                                         Fault{Victim::kEngine, v1::CompressionJob::SEARCH},
                                         Fault{Victim::kEngine, v1::CompressionJob::FINALIZE},
                                         Fault{Victim::kWorker, v1::CompressionJob::PREPARE},
                                         Fault{Victim::kWorker, v1::CompressionJob::SEARCH},
                                         Fault{Victim::kWorker, v1::CompressionJob::FINALIZE},
                                         Fault{Victim::kServer, v1::CompressionJob::PREPARE},
                                         Fault{Victim::kServer, v1::CompressionJob::SEARCH},
                                         Fault{Victim::kServer, v1::CompressionJob::FINALIZE}),
                         [](const testing::TestParamInfo<Fault>& info) {
                           return Name(info.param);
                         });

}  // namespace
}  // namespace qpruner
