#include "proto/task_uris.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace qpruner {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(TaskUris, FilesCountForEveryTaskAndTheModelForThoseThatReadIt) {
  internal::v1::TaskSpec task;
  v1::CompressionSpec& spec = *task.mutable_spec();
  spec.mutable_model()->set_uri("hf://org/name@main");
  spec.mutable_calibration()->mutable_dataset()->set_uri("file:///texts/a");
  spec.mutable_fine_tune()->mutable_dataset()->set_uri("builtin://text");
  spec.mutable_evaluation()->mutable_dataset()->set_uri("file:///texts/b");
  spec.mutable_evaluation()->add_tasks()->set_uri("file:///tasks/c");
  task.mutable_trial();
  EXPECT_THAT(UrisReadByWorker(task),
              ElementsAre("file:///texts/a", "file:///texts/b", "file:///tasks/c"));
  spec.clear_calibration();
  spec.clear_evaluation();
  EXPECT_THAT(UrisReadByWorker(task), IsEmpty());
  task.mutable_finalize();
  EXPECT_THAT(UrisReadByWorker(task), IsEmpty());
  spec.mutable_fine_tune()->mutable_distillation();
  EXPECT_THAT(UrisReadByWorker(task), ElementsAre("hf://org/name@main"));
  task.mutable_prepare();
  EXPECT_THAT(UrisReadByWorker(task), ElementsAre("hf://org/name@main"));
  for (const char* of_the_server : {"builtin://stories260k", "artifact://projects/p/jobs/j/a"}) {
    spec.mutable_model()->set_uri(of_the_server);
    EXPECT_THAT(UrisReadByWorker(task), IsEmpty());
  }
}

TEST(TaskUris, PrefixesAreMatchedPartByPart) {
  EXPECT_TRUE(IsBelowAnyUri("hf://org/name@main", {"s3://b", "hf://"}));
  EXPECT_TRUE(IsBelowAnyUri("s3://bucket/models", {"s3://bucket/models"}));
  EXPECT_TRUE(IsBelowAnyUri("s3://bucket/models/a", {"s3://bucket/models"}));
  EXPECT_FALSE(IsBelowAnyUri("s3://bucket/models-of-others", {"s3://bucket/models"}));
  EXPECT_FALSE(IsBelowAnyUri("s3://bucket", {"s3://bucket/models"}));
  EXPECT_FALSE(IsBelowAnyUri("hf://org/name@main", {}));
}

}  // namespace
}  // namespace qpruner
