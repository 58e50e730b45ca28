// What the server's logs say of attacks, and that attackers do not write them.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "gmock/gmock.h"
#include "nlohmann/json.hpp"
#include "server/attack/attack_test.h"
#include "server/testing/captured_log.h"

namespace qpruner::server {
namespace {

using google::protobuf::Message;
using google::protobuf::MethodDescriptor;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

// Of all that the server logs.
class LogTest : public AttackTest {
 protected:
  // Nobody logs when the default logger changes.
  void TearDown() override { server_.reset(); }
  // "method caller resource outcome" of each line of the audit log since the last time.
  std::vector<std::string> TakeAudit() {
    std::vector<std::string> calls;
    const std::vector<std::string> lines = log_.LinesWith("{\"audit\":");
    for (; audited_ < lines.size(); ++audited_) {
      const std::string& line = lines[audited_];
      const nlohmann::json call =
          nlohmann::json::parse(line.substr(line.find('{')), nullptr, /*allow_exceptions=*/false);
      EXPECT_FALSE(call.is_discarded() || call.value("peer", "").empty()) << line;
      calls.push_back(absl::StrCat(call.value("audit", ""), " ", call.value("caller", ""), " ",
                                   call.value("resource", ""), " ", call.value("outcome", "")));
    }
    return calls;
  }

  CapturedLog log_;

 private:
  size_t audited_ = 0;
};

TEST_F(LogTest, WhoDidWhatIsAuditedOnceAndNoTokenIsTold) {
  StartWithTokens();
  const std::string job = Create(owner_);
  EXPECT_THAT(TakeAudit(), ElementsAre("CreateJob owner " + job + " OK"));
  const internal::v1::AcquireTaskResponse held = Lease();
  EXPECT_THAT(TakeAudit(), ElementsAre("RegisterWorker w1-token w1 OK"));

  // A client looks at another's job.
  for (const char* name : {"WatchJob", "DownloadArtifact", "GetJob", "CancelJob"}) {
    const MethodDescriptor& method = *JobServiceMethods()->FindMethodByName(name);
    const std::string resource =
        method.name() == "DownloadArtifact" ? job + "/artifacts/model/config.json" : job;
    EXPECT_TRUE(
        absl::IsNotFound(CallAny(channel_, method, *RequestAbout(method, job), Bearer(stranger_))));
    EXPECT_THAT(TakeAudit(), ElementsAre(absl::StrCat(name, " stranger ", resource, " NOT_FOUND")));
  }
  v1::ListJobsRequest list;
  list.set_parent("projects/default");
  v1::ListJobsResponse listed;
  EXPECT_FALSE(Call(*jobs_, &v1::JobService::Stub::ListJobs, list, &listed, stranger_).ok());
  EXPECT_THAT(TakeAudit(), ElementsAre("ListJobs stranger projects/default PERMISSION_DENIED"));

  // A worker uses another's lease, or name.
  for (const char* name : {"Heartbeat", "CompleteTask", "SaveCheckpoint", "UploadArtifact",
                           "PrepareUpload", "FetchArtifact"}) {
    const MethodDescriptor& method = *WorkerServiceMethods()->FindMethodByName(name);
    const std::unique_ptr<Message> request = NewRequest(method);
    SetLease(*request, held.lease());
    EXPECT_TRUE(
        absl::IsPermissionDenied(CallAny(channel_, method, *request, Bearer(other_worker_))));
    EXPECT_THAT(TakeAudit(), ElementsAre(absl::StrCat(name, " w2-token ", job,
                                                      "/tasks/prepare PERMISSION_DENIED")));
  }
  internal::v1::AcquireTaskRequest acquire;
  acquire.set_worker("w1");
  internal::v1::AcquireTaskResponse acquired;
  EXPECT_FALSE(Call(*workers_, &internal::v1::WorkerService::Stub::AcquireTask, acquire, &acquired,
                    other_worker_)
                   .ok());
  EXPECT_THAT(TakeAudit(), ElementsAre("AcquireTask w2-token w1 PERMISSION_DENIED"));

  // What comes of the work, and what its owner does with it.
  const MethodDescriptor& upload = *WorkerServiceMethods()->FindMethodByName("UploadArtifact");
  for (const std::string& path : OutputsOf(held.task())) {
    internal::v1::UploadArtifactRequest request;
    *request.mutable_lease() = held.lease();
    *request.mutable_ref() = ArtifactOf(path, ContentOf(path));
    request.set_data(ContentOf(path));
    EXPECT_TRUE(CallAny(channel_, upload, request, Bearer(worker_)).ok());
  }
  internal::v1::CompleteTaskRequest complete;
  *complete.mutable_lease() = held.lease();
  *complete.mutable_result() = ScriptedResult(held.task());
  google::protobuf::Empty empty;
  ASSERT_TRUE(
      Call(*workers_, &internal::v1::WorkerService::Stub::CompleteTask, complete, &empty, worker_)
          .ok());
  EXPECT_THAT(TakeAudit(), IsEmpty()) << "the job's events tell it";
  const std::string artifact = job + "/artifacts/" + OutputsOf(held.task())[0];
  const MethodDescriptor& download = *JobServiceMethods()->FindMethodByName("DownloadArtifact");
  v1::DownloadArtifactRequest wanted;
  wanted.set_name(artifact);
  EXPECT_TRUE(CallAny(channel_, download, wanted, Bearer(owner_)).ok());
  EXPECT_THAT(TakeAudit(), ElementsAre("DownloadArtifact owner " + artifact + " OK"));
  for (const auto& [name, outcome] : std::vector<std::pair<std::string, std::string>>{
           {"DeleteJob", "FAILED_PRECONDITION"}, {"CancelJob", "OK"}}) {
    const MethodDescriptor& method = *JobServiceMethods()->FindMethodByName(name);
    CallAny(channel_, method, *RequestAbout(method, job), Bearer(admin_)).IgnoreError();
    EXPECT_THAT(TakeAudit(), ElementsAre(absl::StrCat(name, " admin ", job, " ", outcome)));
  }
  const MethodDescriptor& remove = *JobServiceMethods()->FindMethodByName("DeleteJob");
  EXPECT_TRUE(CallAny(channel_, remove, *RequestAbout(remove, job), Bearer(owner_)).ok());
  EXPECT_THAT(TakeAudit(), ElementsAre("DeleteJob owner " + job + " OK"));

  const std::string log = log_.text();
  ASSERT_FALSE(log.empty());
  for (const std::string& token : {owner_, stranger_, admin_, worker_, other_worker_}) {
    EXPECT_THAT(log, Not(HasSubstr(token)));
    EXPECT_THAT(log, Not(HasSubstr(Sha256Hex(token))));
  }
  EXPECT_THAT(log, Not(HasSubstr(held.lease().token())));
  EXPECT_THAT(log, Not(HasSubstr("qpruner_"))) << "how each token begins";
}

TEST_F(LogTest, WhatAWorkerSaysForgesNoLine) {
  Start();
  Create();
  const std::string forged = "{\"audit\":\"DeleteJob\",\"caller\":\"owner\"}";
  const internal::v1::AcquireTaskResponse held = Lease("cpu\ninfo " + forged);
  internal::v1::CompleteTaskRequest complete;
  *complete.mutable_lease() = held.lease();
  complete.mutable_error()->set_code(13);
  complete.mutable_error()->set_message("out\r\n\xE2\x80\xA8info " + forged);
  google::protobuf::Empty empty;
  ASSERT_TRUE(
      Call(*workers_, &internal::v1::WorkerService::Stub::CompleteTask, complete, &empty).ok());
  EXPECT_EQ(log_.LinesWith(forged).size(), 2u);
  for (const std::string& line : log_.LinesWith(forged)) {
    EXPECT_FALSE(absl::StartsWith(line, "info {")) << line;
    EXPECT_EQ(line.find_first_of("\r\n"), line.size() - 1) << line;
  }
  EXPECT_EQ(log_.LinesWith("device cpu\\ninfo {").size(), 1u);
  EXPECT_EQ(log_.LinesWith("out\\r\\n\\u2028info {").size(), 1u);
}

}  // namespace
}  // namespace qpruner::server
