#include "server/artifacts/local_artifact_store.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/durable_file.h"
#include "base/sha256.h"
#include "server/artifacts/artifact_store_contract_test.h"
#include "tests/testing/simulated_clock.h"

namespace qpruner::server {
namespace {

class LocalUnderTest final : public ArtifactStoreUnderTest {
 public:
  LocalUnderTest() {
    std::string pattern = testing::TempDir() + "/local_artifact_store.XXXXXX";
    folder_ = mkdtemp(pattern.data());
  }
  ~LocalUnderTest() override { std::filesystem::remove_all(folder_); }
  absl::StatusOr<std::unique_ptr<ArtifactStore>> Open() override {
    return OpenLocalArtifactStore({folder_});
  }
  const std::string& folder() const { return folder_; }

 private:
  std::string folder_;
};

std::unique_ptr<ArtifactStoreUnderTest> MakeLocalUnderTest() {
  return std::make_unique<LocalUnderTest>();
}

INSTANTIATE_TEST_SUITE_P(Local, ArtifactStoreContract, testing::Values(&MakeLocalUnderTest));

// flock(2) holds between open files, so threads contend as processes do.
TEST(SharedLocalArtifactStore, ServersThatStartTogetherTakeNothingFromEachOther) {
  LocalUnderTest files;
  std::vector<std::thread> servers;
  for (int server = 0; server < 8; ++server) {
    servers.emplace_back([&files, server] {
      for (int start = 0; start < 30; ++start) {
        const auto store = OpenLocalArtifactStore({.folder = files.folder(), .shared = true});
        ASSERT_TRUE(store.ok()) << store.status();
        const std::string content = absl::StrCat(server, " ", start);
        const auto writer = (*store)->Create(Sha256Hex(content), content.size());
        ASSERT_TRUE(writer.ok()) << writer.status();
        ASSERT_TRUE((*writer)->Append(content).ok());
        const absl::Status committed = (*writer)->Commit();
        ASSERT_TRUE(committed.ok()) << committed;
      }
    });
  }
  for (std::thread& server : servers) server.join();
}

// Two servers on one folder.
TEST(SharedLocalArtifactStore, ServersShareWhatIsWholeAndNothingElse) {
  LocalUnderTest files;
  const auto open = [&] {
    return OpenLocalArtifactStore({.folder = files.folder(), .shared = true});
  };
  auto a = open().value();
  auto unfinished = (*a).Create(Sha256Hex("half"), 4).value();
  ASSERT_TRUE(unfinished->Append("ha").ok());
  // It leaves the unfinished file of a live server alone.
  auto b = open().value();
  ASSERT_TRUE(unfinished->Append("lf").ok());
  ASSERT_TRUE(unfinished->Commit().ok());
  unfinished.reset();
  EXPECT_TRUE(*b->Contains(Sha256Hex("half")));
  // Alone means alone.
  EXPECT_TRUE(absl::IsFailedPrecondition(files.Open().status()));
  a.reset();
  b.reset();
  const std::string incoming = files.folder() + "/incoming";
  EXPECT_TRUE(std::filesystem::is_empty(incoming));
  // A killed server's folder is nobody's: its lock is free.
  std::filesystem::create_directory(incoming + "/server.killed");
  ASSERT_TRUE(WriteFileDurably(incoming + "/server.killed/half", "ha").ok());
  a = open().value();
  EXPECT_FALSE(std::filesystem::exists(incoming + "/server.killed"));
  a.reset();
  EXPECT_TRUE(files.Open().ok());
}

// As after a crash between the making of a server's folder and its naming.
TEST(SharedLocalArtifactStore, FoldersWithoutANameGoOnceTheyAreOld) {
  LocalUnderTest files;
  const std::string incoming = files.folder() + "/incoming";
  SimulatedClock clock(absl::Now());
  const auto open = [&] {
    return OpenLocalArtifactStore({.folder = files.folder(), .shared = true, .clock = clock});
  };
  auto store = open().value();
  std::filesystem::create_directory(incoming + "/.new.crashd");
  ASSERT_TRUE(store->RemoveAbandonedWrites(clock.Now()).ok());
  EXPECT_TRUE(std::filesystem::exists(incoming + "/.new.crashd")) << "may be about to be named";
  clock.Advance(absl::Hours(2));
  ASSERT_TRUE(store->RemoveAbandonedWrites(clock.Now()).ok());
  EXPECT_FALSE(std::filesystem::exists(incoming + "/.new.crashd"));
  // Its own folder, where writers are at work, stays.
  auto unfinished = store->Create(Sha256Hex("half"), 4).value();
  ASSERT_TRUE(store->RemoveAbandonedWrites(clock.Now()).ok());
  ASSERT_TRUE(unfinished->Append("half").ok());
  EXPECT_TRUE(unfinished->Commit().ok());
  // A server that starts clears them, too.
  std::filesystem::create_directory(incoming + "/.new.crashd");
  clock.Advance(absl::Hours(2));
  auto other = open().value();
  EXPECT_FALSE(std::filesystem::exists(incoming + "/.new.crashd"));
}

class LocalArtifactStoreTest : public testing::Test {
 protected:
  LocalArtifactStoreTest() { Reopen(); }
  void Reopen() {
    store_.reset();
    auto store = files_.Open();
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }
  std::string Store(const std::string& content) {
    const std::string sha256 = Sha256Hex(content);
    auto writer = store_->Create(sha256, static_cast<int64_t>(content.size()));
    EXPECT_TRUE(writer.ok() && (*writer)->Append(content).ok() && (*writer)->Commit().ok());
    return sha256;
  }
  std::string Path(const std::string& sha256) const {
    return LocalArtifactPath(files_.folder(), sha256);
  }
  int IncomingCount() const {
    return static_cast<int>(
        std::distance(std::filesystem::directory_iterator(files_.folder() + "/incoming"), {}));
  }
  // As a failing disk or a careless hand would.
  void Overwrite(const std::string& path, const std::string& content) {
    ASSERT_EQ(unlink(path.c_str()), 0);
    ASSERT_TRUE(WriteFileDurably(path, content).ok());
  }

  LocalUnderTest files_;
  std::unique_ptr<ArtifactStore> store_;
};

TEST_F(LocalArtifactStoreTest, ObjectsAreReadOnlyFilesAtTheirPath) {
  const std::string sha256 = Store("content");
  const std::string path = Path(sha256);
  EXPECT_EQ(path, files_.folder() + "/objects/" + sha256.substr(0, 2) + "/" + sha256.substr(2));
  EXPECT_EQ(*ReadFile(path, 100), "content");
  struct stat info {};
  ASSERT_EQ(stat(path.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0444u);
  EXPECT_EQ(IncomingCount(), 0);
}

TEST_F(LocalArtifactStoreTest, NoticesChangedContent) {
  const std::string sha256 = Store("content");
  Overwrite(Path(sha256), "c0ntent");
  EXPECT_EQ(store_->Verify(sha256).code(), absl::StatusCode::kDataLoss);
  auto reader = *store_->Open(sha256);
  EXPECT_TRUE(reader->Read(0, 3).ok());
  const absl::Status last = reader->Read(3, 100).status();
  EXPECT_EQ(last.code(), absl::StatusCode::kDataLoss);
  EXPECT_NE(last.message().find(sha256), absl::string_view::npos) << last;
}

TEST_F(LocalArtifactStoreTest, NoticesLostBytes) {
  const std::string sha256 = Store("content");
  Overwrite(Path(sha256), "conte");
  EXPECT_EQ(store_->Verify(sha256).code(), absl::StatusCode::kDataLoss);
  Overwrite(Path(sha256), "");
  EXPECT_EQ(store_->Verify(sha256).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ((*store_->Open(sha256))->Read(0, 100).status().code(), absl::StatusCode::kDataLoss);
  // And while it is being read.
  const std::string other = Store("another content");
  auto reader = *store_->Open(other);
  EXPECT_TRUE(reader->Read(0, 3).ok());
  ASSERT_EQ(truncate(Path(other).c_str(), 4), 0);
  EXPECT_EQ(reader->Read(3, 100).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(LocalArtifactStoreTest, StoringAgainRepairs) {
  const std::string sha256 = Store("content");
  Overwrite(Path(sha256), "c0ntent");
  Store("content");
  EXPECT_TRUE(store_->Verify(sha256).ok());
}

TEST_F(LocalArtifactStoreTest, RefusesWhatIsNotAFile) {
  const std::string sha256 = Store("content");
  ASSERT_EQ(unlink(Path(sha256).c_str()), 0);
  ASSERT_EQ(symlink("/etc/hostname", Path(sha256).c_str()), 0);
  EXPECT_EQ(store_->Open(sha256).status().code(), absl::StatusCode::kDataLoss);
  ASSERT_EQ(unlink(Path(sha256).c_str()), 0);
  ASSERT_EQ(mkdir(Path(sha256).c_str(), 0755), 0);
  EXPECT_EQ(store_->Open(sha256).status().code(), absl::StatusCode::kDataLoss);
}

TEST_F(LocalArtifactStoreTest, OpeningRemovesWhatACrashLeft) {
  const std::string kept = Store("content");
  store_.reset();
  ASSERT_TRUE(WriteFileDurably(files_.folder() + "/incoming/half.Xy12", "cont").ok());
  Reopen();
  EXPECT_EQ(IncomingCount(), 0);
  EXPECT_TRUE(store_->Verify(kept).ok());
}

TEST_F(LocalArtifactStoreTest, FailedWritesLeaveNothingAside) {
  const std::string sha256 = Sha256Hex("content");
  {
    auto writer = *store_->Create(sha256, 7);
    EXPECT_EQ(IncomingCount(), 1);
    ASSERT_TRUE(writer->Append("c0ntent").ok());
    EXPECT_EQ(writer->Commit().code(), absl::StatusCode::kDataLoss);
  }
  EXPECT_EQ(IncomingCount(), 0);
}

// Lowers a limit of the process to what leaves room for nothing more.
class Limited {
 public:
  Limited(decltype(RLIMIT_NOFILE) resource, rlim_t value) : resource_(resource) {
    getrlimit(resource_, &before_);
    const rlimit lowered = {.rlim_cur = value, .rlim_max = before_.rlim_max};
    setrlimit(resource_, &lowered);
  }
  ~Limited() { setrlimit(resource_, &before_); }

 private:
  const decltype(RLIMIT_NOFILE) resource_;
  rlimit before_{};
};

// Nobody's fault: whoever wants to store something tries again.
TEST_F(LocalArtifactStoreTest, WhatTheDiskOrTheMachineCannotDoIsUnavailable) {
  const std::string kept = Store("content");
  signal(SIGXFSZ, SIG_IGN);
  auto writer = *store_->Create(Sha256Hex("more content"), 12);
  {
    const Limited no_file_grows(RLIMIT_FSIZE, 3);
    EXPECT_EQ(writer->Append("more content").code(), absl::StatusCode::kUnavailable);
  }
  {
    const Limited no_file_opens(RLIMIT_NOFILE, 0);
    EXPECT_EQ(store_->Create(kept, 7).status().code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(store_->Open(kept).status().code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(store_->List([](const StoredArtifact&) { return absl::OkStatus(); }).code(),
              absl::StatusCode::kUnavailable);
  }
  // Something else lies where the objects were.
  const std::string objects = files_.folder() + "/objects";
  std::filesystem::rename(objects, objects + ".away");
  ASSERT_TRUE(WriteFileDurably(objects, "").ok());
  EXPECT_EQ(store_->Contains(kept).status().code(), absl::StatusCode::kUnavailable);
  std::filesystem::remove(objects);
  std::filesystem::rename(objects + ".away", objects);
  EXPECT_TRUE(store_->Verify(kept).ok());
}

TEST_F(LocalArtifactStoreTest, IsOpenOnlyOnce) {
  const absl::Status second = files_.Open().status();
  EXPECT_EQ(second.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_NE(second.message().find(files_.folder()), absl::string_view::npos) << second;
}

}  // namespace
}  // namespace qpruner::server
