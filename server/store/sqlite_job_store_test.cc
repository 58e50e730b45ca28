#include "server/store/sqlite_job_store.h"

#include <filesystem>

#include "server/store/job_store_contract_test.h"

namespace qpruner::server {
namespace {

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = testing::TempDir() + "/sqlite_job_store.XXXXXX";
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

class SqliteUnderTest final : public JobStoreUnderTest {
 public:
  absl::StatusOr<std::unique_ptr<JobStore>> Open() override {
    SqliteJobStoreOptions options;
    options.folder = folder_.path();
    return OpenSqliteJobStore(options);
  }

 private:
  TemporaryFolder folder_;
};

std::unique_ptr<JobStoreUnderTest> MakeSqliteUnderTest() {
  return std::make_unique<SqliteUnderTest>();
}

INSTANTIATE_TEST_SUITE_P(Sqlite, JobStoreContract, testing::Values(&MakeSqliteUnderTest));

}  // namespace
}  // namespace qpruner::server
