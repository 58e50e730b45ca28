#include "worker/sources/file_roots.h"

#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qpruner::worker {
namespace {

namespace fs = std::filesystem;

class FileRootsTest : public ::testing::Test {
 protected:
  FileRootsTest() {
    char pattern[] = "/tmp/qpruner_file_roots_test.XXXXXX";
    folder_ = mkdtemp(pattern);
    for (const char* path : {"models/a", "models-of-others/b", "secrets"}) {
      fs::create_directories(folder_ / path);
    }
    std::ofstream(folder_ / "models/a/config.json") << "{}";
    std::ofstream(folder_ / "secrets/key") << "key";
  }
  ~FileRootsTest() override { fs::remove_all(folder_); }

  absl::Status Check(const std::string& path) {
    v1::CompressionSpec spec;
    spec.mutable_model()->set_uri("file://" + (folder_ / path).string());
    return FileRoots({(folder_ / "models").string() + "/"}).Check(spec);
  }
  fs::path folder_;
};

TEST_F(FileRootsTest, AllowsWhatLiesBelow) {
  EXPECT_TRUE(Check("models/a").ok()) << Check("models/a");
  EXPECT_TRUE(Check("models").ok());
  EXPECT_TRUE(Check("models/not there yet").ok()) << "the engine says that";
  EXPECT_TRUE(absl::IsFailedPrecondition(Check("models-of-others/b")));
  EXPECT_TRUE(absl::IsFailedPrecondition(Check("secrets")));
  EXPECT_TRUE(absl::IsFailedPrecondition(Check("models/../secrets")));
  EXPECT_TRUE(FileRoots({"/"}).Check({}).ok());
}

TEST_F(FileRootsTest, NoRootAllowsNothing) {
  v1::CompressionSpec spec;
  spec.mutable_model()->set_uri("file:///");
  EXPECT_TRUE(absl::IsFailedPrecondition(FileRoots({}).Check(spec)));
  spec.mutable_model()->set_uri("builtin://stories260k");
  EXPECT_TRUE(FileRoots({}).Check(spec).ok());
}

TEST_F(FileRootsTest, LinksDoNotLeadOut) {
  fs::create_directory_symlink(folder_ / "secrets", folder_ / "models/link");
  EXPECT_TRUE(absl::IsFailedPrecondition(Check("models/link")));
  EXPECT_TRUE(absl::IsFailedPrecondition(Check("models/link/key")));
  // Nor does a file of the model.
  fs::create_symlink(folder_ / "secrets/key", folder_ / "models/a/model.safetensors");
  const absl::Status status = Check("models/a");
  EXPECT_TRUE(absl::IsFailedPrecondition(status));
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("model.safetensors"));
  // Links that stay inside are how a hub's cache lays out its snapshots.
  fs::remove(folder_ / "models/a/model.safetensors");
  std::ofstream(folder_ / "models/blob") << "x";
  fs::create_symlink("../blob", folder_ / "models/a/model.safetensors");
  EXPECT_TRUE(Check("models/a").ok());
}

TEST_F(FileRootsTest, EveryUriOfTheSpecIsChecked) {
  const FileRoots roots({(folder_ / "models").string()});
  const std::string out = "file://" + (folder_ / "secrets/key").string();
  v1::CompressionSpec spec;
  spec.mutable_model()->set_uri("builtin://stories260k");
  EXPECT_TRUE(roots.Check(spec).ok());
  const auto refused = [&](auto&& change) {
    v1::CompressionSpec changed = spec;
    change(changed);
    return absl::IsFailedPrecondition(roots.Check(changed));
  };
  EXPECT_TRUE(refused([&](auto& s) { s.mutable_calibration()->mutable_dataset()->set_uri(out); }));
  EXPECT_TRUE(refused([&](auto& s) { s.mutable_evaluation()->mutable_dataset()->set_uri(out); }));
  EXPECT_TRUE(refused([&](auto& s) { s.mutable_evaluation()->add_tasks()->set_uri(out); }));
  EXPECT_TRUE(refused([&](auto& s) { s.mutable_fine_tune()->mutable_dataset()->set_uri(out); }));
}

}  // namespace
}  // namespace qpruner::worker
