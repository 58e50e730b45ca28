#include "server/auth/token_table.h"

#include <sys/stat.h>

#include "base/durable_file.h"
#include "base/sha256.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/status_codec.h"
#include "server/testing/scripted_job.h"

namespace qpruner::server {
namespace {

using internal::v1::TokenEntry;
using internal::v1::TokenFile;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr absl::Time kNow = absl::FromUnixSeconds(1'800'000'000);

TokenEntry Client() {
  TokenEntry entry;
  entry.set_id("ci");
  entry.set_sha256(Sha256Hex("secret"));
  entry.set_role(TokenEntry::CLIENT);
  entry.add_projects("default");
  return entry;
}

std::string Refusal(const TokenEntry& entry) {
  TokenFile file;
  *file.add_tokens() = entry;
  return std::string(TokenTable::Create(file).status().message());
}

TEST(TokenTable, FindsTheBearer) {
  TokenFile file;
  *file.add_tokens() = Client();
  const TokenTable table = TokenTable::Create(file).value();
  const absl::StatusOr<Principal> found = table.Find("secret", kNow);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->id, "ci");
  EXPECT_EQ(found->role, Role::kClient);
  EXPECT_THAT(found->projects, ElementsAre("default"));
  for (const char* wrong : {"", "Secret", "secret ", "secre"}) {
    EXPECT_TRUE(absl::IsUnauthenticated(table.Find(wrong, kNow).status())) << wrong;
  }
}

TEST(TokenTable, ExpiresToTheSecond) {
  TokenFile file;
  *file.add_tokens() = Client();
  file.mutable_tokens(0)->mutable_expire_time()->set_seconds(absl::ToUnixSeconds(kNow));
  const TokenTable table = TokenTable::Create(file).value();
  EXPECT_TRUE(table.Find("secret", kNow - absl::Milliseconds(1)).ok());
  const absl::Status expired = table.Find("secret", kNow).status();
  EXPECT_TRUE(absl::IsUnauthenticated(expired));
  EXPECT_EQ(ErrorReason(expired), "TOKEN_EXPIRED");
}

TEST(TokenTable, EachRuleIsNamedWithItsEntry) {
  TokenEntry entry = Client();
  entry.set_id("CI");
  EXPECT_THAT(Refusal(entry), HasSubstr("token \"CI\": id must match"));
  entry = Client();
  entry.set_sha256("secret");
  EXPECT_THAT(Refusal(entry), HasSubstr("sha256 must be"));
  entry = Client();
  entry.clear_role();
  EXPECT_THAT(Refusal(entry), HasSubstr("role must be"));
  entry = Client();
  entry.clear_projects();
  EXPECT_THAT(Refusal(entry), HasSubstr("projects must be given for a CLIENT"));
  entry = Client();
  entry.add_projects("../other");
  EXPECT_THAT(Refusal(entry), HasSubstr("projects: \"../other\""));
  entry = Client();
  entry.add_workers("gpu-1");
  EXPECT_THAT(Refusal(entry), HasSubstr("workers must be given for a WORKER, and for no other"));
  entry = Client();
  entry.set_role(TokenEntry::WORKER);
  entry.clear_projects();
  EXPECT_THAT(Refusal(entry), HasSubstr("workers must be given for a WORKER"));
  entry.add_workers("gpu*1");
  EXPECT_THAT(Refusal(entry), HasSubstr("workers: \"gpu*1\""));
}

TEST(TokenTable, IdsAndTokensAreUnique) {
  TokenFile file;
  *file.add_tokens() = Client();
  *file.add_tokens() = Client();
  file.mutable_tokens(1)->set_sha256(Sha256Hex("other"));
  EXPECT_THAT(std::string(TokenTable::Create(file).status().message()),
              HasSubstr("id is not unique"));
  *file.mutable_tokens(1) = Client();
  file.mutable_tokens(1)->set_id("ci-2");
  EXPECT_THAT(std::string(TokenTable::Create(file).status().message()),
              HasSubstr("sha256 is another"));
}

TEST(TokenTable, AFileWithUnknownFieldsOrNoJsonIsRefused) {
  EXPECT_TRUE(TokenTable::Parse("{}").ok());
  EXPECT_TRUE(absl::IsInvalidArgument(TokenTable::Parse(R"({"token": []})").status()));
  EXPECT_TRUE(absl::IsInvalidArgument(TokenTable::Parse("tokens: []").status()));
}

TEST(Principal, ProjectsAndWorkersBoundWhatTheRoleMay) {
  const Principal client{.id = "c", .role = Role::kClient, .projects = {"a"}};
  EXPECT_TRUE(client.MayUseProject("a"));
  EXPECT_FALSE(client.MayUseProject("ab"));
  EXPECT_FALSE(client.MayBeWorker("a"));
  const Principal worker{.id = "w", .role = Role::kWorker, .workers = {"cpu", "gpu-*"}};
  EXPECT_TRUE(worker.MayBeWorker("gpu-7"));
  EXPECT_TRUE(worker.MayBeWorker("cpu"));
  EXPECT_FALSE(worker.MayBeWorker("cpu2"));
  EXPECT_FALSE(worker.MayBeWorker("gpu"));
  EXPECT_FALSE(worker.MayUseProject("a"));
  const Principal admin{.id = "a", .role = Role::kAdmin};
  EXPECT_TRUE(admin.MayUseProject("a"));
  EXPECT_FALSE(admin.MayBeWorker("cpu"));
}

TEST(NewToken, IsAcceptedByItsFileAndStoredOnlyHashed) {
  TempFolder folder;
  const std::string path = folder.path() + "/tokens.json";
  const absl::StatusOr<std::string> token = AddNewToken({.file = path,
                                                         .id = "ci",
                                                         .role = "client",
                                                         .projects = {"default"},
                                                         .expires = "2027-01-31"},
                                                        SystemIdGenerator());
  ASSERT_TRUE(token.ok()) << token.status();
  const absl::StatusOr<std::string> second = AddNewToken(
      {.file = path, .id = "gpus", .role = "worker", .workers = {"gpu-*"}}, SystemIdGenerator());
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_NE(*token, *second);
  EXPECT_EQ(token->size(), 8u + 64u);

  const std::string json = ReadFile(path, 1 << 20).value();
  EXPECT_THAT(json, Not(HasSubstr(token->substr(8))));
  const TokenTable table = TokenTable::Parse(json).value();
  EXPECT_EQ(table.Find(*second, kNow)->id, "gpus");
  const absl::Time end = absl::FromCivil(absl::CivilSecond(2027, 1, 31), absl::UTCTimeZone());
  EXPECT_TRUE(table.Find(*token, end - absl::Seconds(1)).ok());
  EXPECT_FALSE(table.Find(*token, end).ok());
  struct stat info {};
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
}

TEST(NewToken, ABadOneWritesNothing) {
  TempFolder folder;
  const std::string path = folder.path() + "/tokens.json";
  EXPECT_FALSE(AddNewToken({.file = path, .id = "x", .role = "king"}, SystemIdGenerator()).ok());
  EXPECT_FALSE(AddNewToken({.file = path, .id = "x", .role = "admin", .expires = "soon"},
                           SystemIdGenerator())
                   .ok());
  EXPECT_TRUE(absl::IsNotFound(ReadFile(path, 1).status()));
}

}  // namespace
}  // namespace qpruner::server
