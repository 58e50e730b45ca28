#include "server/auth/access_control.h"

#include <memory>
#include <sstream>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "grpcpp/server_context.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "spdlog/sinks/ostream_sink.h"
#include "spdlog/spdlog.h"
#include "tests/testing/simulated_clock.h"
#include "tests/testing/temp_folder.h"

namespace qpruner::server {
namespace {

class AccessControlTest : public testing::Test {
 protected:
  AccessControlTest() {
    auto sink = std::make_shared<spdlog::sinks::ostream_sink_mt>(written_);
    spdlog::set_default_logger(std::make_shared<spdlog::logger>("server", sink));
    spdlog::set_pattern("%v");
    const std::string file = folder_.path() + "/tokens.json";
    EXPECT_TRUE(AddNewToken({.file = file, .id = "ci", .role = "client", .projects = {"default"}},
                            SystemIdGenerator())
                    .ok());
    access_ = AccessControl::FromFile(file, clock_).value();
  }
  ~AccessControlTest() override { spdlog::set_default_logger(before_); }
  std::vector<nlohmann::json> TakeLines() {
    std::vector<nlohmann::json> lines;
    for (const auto line : absl::StrSplit(written_.str(), '\n', absl::SkipEmpty())) {
      lines.push_back(nlohmann::json::parse(line));
    }
    written_.str("");
    return lines;
  }

  const std::shared_ptr<spdlog::logger> before_ = spdlog::default_logger();
  std::ostringstream written_;
  TempFolder folder_;
  SimulatedClock clock_;
  std::unique_ptr<AccessControl> access_;
  grpc::ServerContext without_token_;
};

TEST_F(AccessControlTest, ARefusedCallIsAuditedByItsMethod) {
  EXPECT_TRUE(absl::IsUnauthenticated(access_->AdmitClient(without_token_, "DeleteJob").status()));
  EXPECT_TRUE(
      absl::IsUnauthenticated(access_->AdmitWorker(without_token_, "CompleteTask").status()));
  const std::vector<nlohmann::json> lines = TakeLines();
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0]["audit"], "DeleteJob");
  EXPECT_EQ(lines[0]["outcome"], "UNAUTHENTICATED");
  EXPECT_EQ(lines[1]["audit"], "CompleteTask");
}

TEST_F(AccessControlTest, RefusalsAreAuditedAtABoundedRateAndTheRestCounted) {
  for (int i = 0; i < 50; ++i) {
    EXPECT_FALSE(access_->AdmitClient(without_token_, "GetJob").ok());
  }
  EXPECT_EQ(TakeLines().size(), 20u);
  clock_.Advance(absl::Seconds(1));
  EXPECT_FALSE(access_->AdmitClient(without_token_, "GetJob").ok());
  const std::vector<nlohmann::json> lines = TakeLines();
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0]["count"], 30);
  EXPECT_EQ(lines[1]["audit"], "GetJob");
}

TEST_F(AccessControlTest, StrangersDoNotHideWhatABearerTries) {
  for (int i = 0; i < 50; ++i) {
    EXPECT_FALSE(access_->AdmitClient(without_token_, "GetJob").ok());
  }
  TakeLines();
  const absl::Status refusal = absl::PermissionDeniedError("no");
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(access_->AuditRefusal(without_token_, {.id = "w2", .role = Role::kWorker},
                                    "Heartbeat", "projects/a/jobs/b", refusal),
              refusal);
  }
  const std::vector<nlohmann::json> lines = TakeLines();
  ASSERT_EQ(lines.size(), 20u);
  EXPECT_EQ(lines[0]["audit"], "Heartbeat");
  EXPECT_EQ(lines[0]["caller"], "w2");
  EXPECT_EQ(lines[0]["resource"], "projects/a/jobs/b");
  EXPECT_EQ(lines[0]["outcome"], "PERMISSION_DENIED");
}

}  // namespace
}  // namespace qpruner::server
