#include "worker/engine/tasks/source_uri.h"

#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qpruner::engine {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class SourceUriTest : public ::testing::Test {
 protected:
  SourceUriTest() {
    char pattern[] = "/tmp/qpruner_source_uri_test.XXXXXX";
    folder_ = mkdtemp(pattern);
    fs::create_directories(fs::path(folder_) / "models/tiny");
    fs::create_directories(fs::path(folder_) / "corpus");
    std::ofstream(folder_ + "/corpus/tinystories.txt") << "Once.";
  }
  ~SourceUriTest() override { fs::remove_all(folder_); }
  std::string folder_;
};

TEST_F(SourceUriTest, FindsBuiltinAndFileModels) {
  EXPECT_EQ(*ResolveModel("builtin://tiny", folder_, ""), folder_ + "/models/tiny");
  EXPECT_EQ(*ResolveModel("file://" + folder_ + "/models", "/nowhere", ""), folder_ + "/models");
  std::ofstream(folder_ + "/model.Q4_0.gguf") << "GGUF";
  EXPECT_EQ(*ResolveModel("file://" + folder_ + "/model.Q4_0.gguf", "", ""),
            folder_ + "/model.Q4_0.gguf");
}

TEST_F(SourceUriTest, FindsWhatTheAgentHasBrought) {
  const std::string source = folder_ + "/source";
  for (const char* uri :
       {"hf://a/b@c", "s3://bucket/model", "artifact://projects/p/jobs/j/artifacts/m"}) {
    fs::remove_all(source);
    EXPECT_EQ(ResolveModel(uri, "", folder_).status().code(), absl::StatusCode::kNotFound);
    fs::create_directories(source);
    EXPECT_EQ(ResolveModel(uri, "", folder_).status().code(), absl::StatusCode::kNotFound);
    std::ofstream(source + "/tiny.gguf") << "GGUF";
    EXPECT_EQ(*ResolveModel(uri, "", folder_), source + "/tiny.gguf");
    std::ofstream(source + "/config.json") << "{}";
    EXPECT_EQ(*ResolveModel(uri, "", folder_), source);
  }
}

TEST_F(SourceUriTest, AnEmptyTextIsTheShippedOne) {
  EXPECT_EQ(*ResolveText("", folder_), folder_ + "/corpus/tinystories.txt");
  EXPECT_EQ(*ResolveText("builtin://tinystories", folder_), folder_ + "/corpus/tinystories.txt");
}

TEST_F(SourceUriTest, RefusesWhatIsNoSuchUriAndSaysWhatWouldBe) {
  for (const char* uri : {"", "tiny", "/absolute", "file://relative", "http://host/model",
                          "builtin://", "builtin://../secret", "builtin://a/b", "builtin://."}) {
    const auto folder = ResolveModel(uri, folder_, "");
    EXPECT_EQ(folder.status().code(), absl::StatusCode::kInvalidArgument) << uri;
    EXPECT_THAT(std::string(folder.status().message()), HasSubstr("model.uri")) << uri;
    EXPECT_THAT(std::string(folder.status().message()), HasSubstr("file:///")) << uri;
  }
}

TEST_F(SourceUriTest, NamesWhatIsNotThere) {
  EXPECT_EQ(ResolveModel("builtin://other", folder_, "").status().code(),
            absl::StatusCode::kNotFound);
  // Only a .gguf file is a model by itself, and a folder is no text.
  EXPECT_EQ(ResolveModel("file://" + folder_ + "/corpus/tinystories.txt", "", "").status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(ResolveText("file://" + folder_, "").status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace qpruner::engine
