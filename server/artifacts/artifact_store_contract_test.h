// What every ArtifactStore must do. A backend's test includes this file and instantiates the suite:
//
//   INSTANTIATE_TEST_SUITE_P(Local, ArtifactStoreContract, testing::Values(&MakeLocalUnderTest));
#ifndef QPRUNER_SERVER_ARTIFACTS_ARTIFACT_STORE_CONTRACT_TEST_H_
#define QPRUNER_SERVER_ARTIFACTS_ARTIFACT_STORE_CONTRACT_TEST_H_

#include <atomic>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "gtest/gtest.h"
#include "server/artifacts/artifact_store.h"

namespace qpruner::server {

// Storage of a store, empty at first, that outlives the store's objects.
class ArtifactStoreUnderTest {
 public:
  virtual ~ArtifactStoreUnderTest() = default;
  // A store on this storage. The one before must be destroyed first.
  virtual absl::StatusOr<std::unique_ptr<ArtifactStore>> Open() = 0;
  // Why there is no such storage here; empty: there is.
  virtual std::string MissingReason() const { return ""; }
};

using MakeArtifactStoreUnderTest = std::unique_ptr<ArtifactStoreUnderTest> (*)();

class ArtifactStoreContract : public testing::TestWithParam<MakeArtifactStoreUnderTest> {
 protected:
  void SetUp() override {
    if (!under_test_->MissingReason().empty()) GTEST_SKIP() << under_test_->MissingReason();
    Reopen();
  }

  void Reopen() {
    store_.reset();
    absl::StatusOr<std::unique_ptr<ArtifactStore>> store = under_test_->Open();
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }
  absl::Status Store(absl::string_view content, const std::string& sha256, int64_t size_bytes) {
    ASSIGN_OR_RETURN(std::unique_ptr<ArtifactWriter> writer, store_->Create(sha256, size_bytes));
    // In pieces, as they come over the network.
    for (; !content.empty(); content.remove_prefix(std::min<size_t>(content.size(), 1000))) {
      RETURN_IF_ERROR(writer->Append(content.substr(0, 1000)));
    }
    return writer->Commit();
  }
  absl::Status Store(absl::string_view content) {
    return Store(content, Sha256Hex(content), static_cast<int64_t>(content.size()));
  }
  absl::StatusOr<std::string> Load(const std::string& sha256, int64_t chunk = 700) {
    ASSIGN_OR_RETURN(std::unique_ptr<ArtifactReader> reader, store_->Open(sha256));
    std::string content;
    for (;;) {
      ASSIGN_OR_RETURN(const std::string data,
                       reader->Read(static_cast<int64_t>(content.size()), chunk));
      if (data.empty()) return content;
      content += data;
    }
  }
  bool Contains(const std::string& sha256) {
    const absl::StatusOr<bool> contains = store_->Contains(sha256);
    EXPECT_TRUE(contains.ok()) << contains.status();
    return contains.ok() && *contains;
  }
  static std::string Text(size_t size, char seed = 'a') {
    std::string text(size, seed);
    for (size_t i = 0; i < size; ++i) text[i] = static_cast<char>(seed + i % 23 + i / 1000 % 7);
    return text;
  }

  std::unique_ptr<ArtifactStoreUnderTest> under_test_ = GetParam()();
  std::unique_ptr<ArtifactStore> store_;
};

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(ArtifactStoreContract);

TEST_P(ArtifactStoreContract, KeepsContentBeyondItsOwnLife) {
  for (const size_t size : {size_t{0}, size_t{1}, size_t{2500}, size_t{100'000}}) {
    const std::string content = Text(size);
    const std::string sha256 = Sha256Hex(content);
    EXPECT_FALSE(Contains(sha256));
    const absl::Status stored = Store(content);
    ASSERT_TRUE(stored.ok()) << stored;
    for (int round = 0; round < 2; ++round) {
      EXPECT_TRUE(Contains(sha256));
      EXPECT_TRUE(store_->Verify(sha256).ok());
      EXPECT_EQ((*store_->Open(sha256))->size_bytes(), static_cast<int64_t>(size));
      const absl::StatusOr<std::string> loaded = Load(sha256);
      ASSERT_TRUE(loaded.ok()) << loaded.status();
      EXPECT_EQ(*loaded, content);
      Reopen();
    }
  }
}

TEST_P(ArtifactStoreContract, StoringTwiceIsFine) {
  const std::string content = Text(1234);
  ASSERT_TRUE(Store(content).ok());
  const absl::Status again = Store(content);
  EXPECT_TRUE(again.ok()) << again;
  EXPECT_EQ(*Load(Sha256Hex(content)), content);
}

TEST_P(ArtifactStoreContract, KeepsNothingThatIsNotWhatItsNameSays) {
  const std::string content = Text(3000);
  const std::string sha256 = Sha256Hex(content);
  // Other content of the same size.
  EXPECT_EQ(Store(Text(3000, 'b'), sha256, 3000).code(), absl::StatusCode::kDataLoss);
  // Too short, too long, right content under a wrong size.
  EXPECT_EQ(Store(content.substr(0, 2999), sha256, 3000).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(Store(content + "x", sha256, 3000).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Store(content, sha256, 3001).code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(Contains(sha256));
}

TEST_P(ArtifactStoreContract, AbandonedWriterLeavesNothing) {
  const std::string content = Text(3000);
  const std::string sha256 = Sha256Hex(content);
  {
    auto writer = store_->Create(sha256, 3000);
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE((*writer)->Append(content).ok());
    EXPECT_FALSE(Contains(sha256));  // Not visible before Commit.
  }
  EXPECT_FALSE(Contains(sha256));
  EXPECT_EQ(store_->Open(sha256).status().code(), absl::StatusCode::kNotFound);
}

TEST_P(ArtifactStoreContract, ReadsRanges) {
  const std::string content = Text(1000);
  ASSERT_TRUE(Store(content).ok());
  auto reader = *store_->Open(Sha256Hex(content));
  EXPECT_EQ(*reader->Read(990, 100), content.substr(990));
  EXPECT_EQ(*reader->Read(0, 10), content.substr(0, 10));
  EXPECT_EQ(*reader->Read(500, 100), content.substr(500, 100));
  EXPECT_EQ(*reader->Read(1000, 10), "");
  EXPECT_EQ(*reader->Read(5000, 10), "");
  EXPECT_EQ(*reader->Read(10, 0), "");
  EXPECT_EQ(*reader->Read(0, 1 << 30), content);
  EXPECT_EQ(reader->Read(-1, 10).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(reader->Read(0, -1).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(ArtifactStoreContract, RefusesNamesThatAreNoHash) {
  const std::string sha256 = Sha256Hex("x");
  std::string upper_case = sha256;
  upper_case[0] = 'A';
  for (const std::string& name : {std::string(), std::string("../../etc/passwd"), upper_case,
                                  sha256.substr(1), sha256 + "0", "/" + sha256.substr(1)}) {
    EXPECT_EQ(store_->Create(name, 1).status().code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(store_->Open(name).status().code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(store_->Verify(name).code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(store_->Contains(name).status().code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(store_->Describe(name).status().code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(store_->Remove(name).code(), absl::StatusCode::kInvalidArgument) << name;
  }
  EXPECT_EQ(store_->Create(sha256, -1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store_->Create(sha256, kMaxArtifactBytes + 1).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_P(ArtifactStoreContract, RemovesForGood) {
  const std::string content = Text(2000);
  const std::string sha256 = Sha256Hex(content);
  ASSERT_TRUE(Store(content).ok());
  auto reader = *store_->Open(sha256);
  ASSERT_TRUE(store_->Remove(sha256).ok());
  EXPECT_FALSE(Contains(sha256));
  EXPECT_EQ(store_->Open(sha256).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store_->Verify(sha256).code(), absl::StatusCode::kNotFound);
  EXPECT_TRUE(store_->Remove(sha256).ok());
  // Never other content.
  const absl::StatusOr<std::string> read = reader->Read(0, 10'000);
  if (read.ok()) {
    EXPECT_EQ(*read, content);
  } else {
    EXPECT_TRUE(absl::IsNotFound(read.status())) << read.status();
  }
  ASSERT_TRUE(Store(content).ok());
  EXPECT_EQ(*Load(sha256), content);
}

TEST_P(ArtifactStoreContract, ListsWhatIsStored) {
  const auto list = [&] {
    std::map<std::string, int64_t> sizes;
    EXPECT_TRUE(store_
                    ->List([&](const StoredArtifact& artifact) {
                      EXPECT_TRUE(sizes.emplace(artifact.sha256, artifact.size_bytes).second);
                      return absl::OkStatus();
                    })
                    .ok());
    return sizes;
  };
  EXPECT_TRUE(list().empty());
  std::map<std::string, int64_t> expected;
  for (size_t size = 0; size < 20; ++size) {
    ASSERT_TRUE(Store(Text(size)).ok());
    expected[Sha256Hex(Text(size))] = static_cast<int64_t>(size);
  }
  auto unfinished = *store_->Create(Sha256Hex("unfinished"), 10);
  ASSERT_TRUE(unfinished->Append("unfin").ok());
  EXPECT_EQ(list(), expected);
  const std::string first = expected.begin()->first;
  ASSERT_TRUE(store_->Remove(first).ok());
  expected.erase(first);
  EXPECT_EQ(list(), expected);
  // The visitor's error ends it.
  int seen = 0;
  const absl::Status status = store_->List([&](const StoredArtifact&) {
    return ++seen < 3 ? absl::OkStatus() : absl::CancelledError("enough");
  });
  EXPECT_TRUE(absl::IsCancelled(status));
  EXPECT_EQ(seen, 3);
}

TEST_P(ArtifactStoreContract, DescribesWhatIsStored) {
  const std::string content = Text(1234);
  const std::string sha256 = Sha256Hex(content);
  EXPECT_TRUE(absl::IsNotFound(store_->Describe(sha256).status()));
  // Storages keep whole seconds at worst, and have clocks of their own.
  const absl::Time before = absl::Now() - absl::Minutes(1);
  ASSERT_TRUE(Store(content).ok());
  const absl::StatusOr<StoredArtifact> stored = store_->Describe(sha256);
  ASSERT_TRUE(stored.ok()) << stored.status();
  EXPECT_EQ(stored->sha256, sha256);
  EXPECT_EQ(stored->size_bytes, 1234);
  EXPECT_GT(stored->store_time, before);
  EXPECT_LT(stored->store_time, absl::Now() + absl::Minutes(1));
}

TEST_P(ArtifactStoreContract, LiveWritersAreNotAbandoned) {
  const std::string content = Text(3000);
  auto writer = *store_->Create(Sha256Hex(content), 3000);
  ASSERT_TRUE(writer->Append(content.substr(0, 1500)).ok());
  const absl::Status removed = store_->RemoveAbandonedWrites(absl::Now() - absl::Hours(1));
  EXPECT_TRUE(removed.ok()) << removed;
  ASSERT_TRUE(writer->Append(content.substr(1500)).ok());
  const absl::Status committed = writer->Commit();
  EXPECT_TRUE(committed.ok()) << committed;
}

TEST_P(ArtifactStoreContract, WritersOfTheSameContentDoNotDisturbEachOther) {
  const std::string content = Text(50'000);
  const std::string sha256 = Sha256Hex(content);
  std::vector<std::thread> threads;
  std::atomic<int> failures = 0;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 5; ++round) {
        if (!Store(content).ok() || *Load(sha256, 10'000) != content) ++failures;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failures, 0);
  EXPECT_TRUE(store_->Verify(sha256).ok());
}

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_ARTIFACTS_ARTIFACT_STORE_CONTRACT_TEST_H_
