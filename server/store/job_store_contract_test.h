// What every JobStore must do. A backend's test includes this file and instantiates the suite:
//
//   INSTANTIATE_TEST_SUITE_P(Sqlite, JobStoreContract, testing::Values(&MakeSqliteUnderTest));
#ifndef QPRUNER_SERVER_STORE_JOB_STORE_CONTRACT_TEST_H_
#define QPRUNER_SERVER_STORE_JOB_STORE_CONTRACT_TEST_H_

#include <atomic>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/sha256.h"
#include "base/status_macros.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/store/job_store.h"
#include "server/testing/damaged_record.h"

namespace qpruner::server {

// Storage of a store, empty at first, that outlives the store's objects.
class JobStoreUnderTest {
 public:
  virtual ~JobStoreUnderTest() = default;
  // A store on this storage. The one before must be destroyed first.
  virtual absl::StatusOr<std::unique_ptr<JobStore>> Open() = 0;
};

using MakeJobStoreUnderTest = std::unique_ptr<JobStoreUnderTest> (*)();

class JobStoreContract : public testing::TestWithParam<MakeJobStoreUnderTest> {
 protected:
  using Job = v1::CompressionJob;
  using JobRecord = internal::v1::JobRecord;
  using Task = internal::v1::TaskRecord;

  JobStoreContract() : under_test_(GetParam()()) { Reopen(); }

  void Reopen() {
    store_.reset();
    absl::StatusOr<std::unique_ptr<JobStore>> store = under_test_->Open();
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }

  // Reads one thing in a snapshot of its own.
  template <typename F>
  auto Read(F read) {
    decltype(read(std::declval<StoreReader&>())) result = absl::UnknownError("not read");
    const absl::Status status = store_->Read([&](StoreReader& reader) {
      result = read(reader);
      return result.status();
    });
    EXPECT_EQ(status, result.status());
    return result;
  }
  // The same, where there must be a value.
  template <typename F>
  auto Value(F read) {
    auto result = Read(read);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *std::move(result) : typename std::decay_t<decltype(result)>::value_type();
  }
  absl::StatusOr<JobRecord> GetJob(const JobName& name) {
    return Read([&](StoreReader& reader) { return reader.GetJob(name); });
  }
  StoreReader::JobPage List(const JobFilter& filter, int page_size, const std::string& token = "") {
    auto page =
        Read([&](StoreReader& reader) { return reader.ListJobs(filter, page_size, token); });
    EXPECT_TRUE(page.ok()) << page.status();
    return page.ok() ? *page : StoreReader::JobPage();
  }
  void Write(absl::FunctionRef<absl::Status(StoreTransaction&)> body) {
    const absl::Status status = store_->Transact(body);
    ASSERT_TRUE(status.ok()) << status;
  }

  static JobName Name(const std::string& job) { return {"default", job}; }
  static JobRecord MakeJob(const JobName& name, Job::State state = Job::PENDING,
                           const std::map<std::string, std::string>& labels = {}) {
    JobRecord record;
    record.mutable_job()->set_name(name.ToString());
    record.mutable_job()->set_state(state);
    record.mutable_job()->mutable_labels()->insert(labels.begin(), labels.end());
    return record;
  }
  static Task MakeTask(const JobName& job, const std::string& id, Task::State state = Task::QUEUED,
                       int64_t create_seconds = 100) {
    Task task;
    task.set_job(job.ToString());
    task.set_task_id(id);
    task.set_state(state);
    task.mutable_create_time()->set_seconds(create_seconds);
    return task;
  }
  static v1::JobEvent MakeEvent(int64_t sequence) {
    v1::JobEvent event;
    event.set_sequence(sequence);
    event.mutable_log()->set_text(absl::StrCat("line ", sequence));
    return event;
  }
  static v1::Trial MakeTrial(int index) {
    v1::Trial trial;
    trial.set_index(index);
    trial.set_state(v1::Trial::QUEUED);
    return trial;
  }
  static v1::Artifact MakeArtifact(const JobName& job, const std::string& path,
                                   const std::string& content) {
    v1::Artifact artifact;
    artifact.set_name(job.ArtifactName(path));
    artifact.set_sha256(Sha256Hex(content));
    artifact.set_size_bytes(static_cast<int64_t>(content.size()));
    return artifact;
  }
  // Last parts of the names of jobs or ids of tasks.
  static std::vector<std::string> Ids(const std::vector<JobRecord>& records) {
    std::vector<std::string> ids;
    for (const JobRecord& record : records) {
      ids.push_back(JobName::Parse(record.job().name())->job);
    }
    return ids;
  }
  static std::vector<std::string> Ids(const std::vector<Job>& jobs) {
    std::vector<std::string> ids;
    for (const Job& job : jobs) ids.push_back(JobName::Parse(job.name())->job);
    return ids;
  }
  static std::vector<std::string> Ids(const std::vector<Task>& tasks) {
    std::vector<std::string> ids;
    for (const Task& task : tasks) ids.push_back(task.task_id());
    return ids;
  }
  std::vector<std::string> Queued(int64_t now_seconds, int limit = 100) {
    const auto queues = Value([&](StoreReader& reader) {
      return reader.TaskQueues(absl::FromUnixSeconds(now_seconds), limit);
    });
    EXPECT_LE(queues.size(), 1u);
    return queues.empty() ? std::vector<std::string>() : Ids(queues[0].tasks);
  }

  // Of a store that was written by an older version and migrated: the job `a` with a QUEUED task
  // "prepare" of priority 3 and a trial. It goes on as any other.
  static void ExpectOldJobGoesOn(JobStore& store);

  std::unique_ptr<JobStoreUnderTest> under_test_;
  std::unique_ptr<JobStore> store_;
};

inline void JobStoreContract::ExpectOldJobGoesOn(JobStore& store) {
  const absl::Status status = store.Transact([](StoreTransaction& t) -> absl::Status {
    ASSIGN_OR_RETURN(JobRecord job, t.GetJob(Name("a")));
    ASSIGN_OR_RETURN(const StoreReader::JobPage page,
                     t.ListJobs({"default", {Job::RUNNING}, {{"team", "blue"}}}, 10, ""));
    EXPECT_EQ(page.jobs.size(), 1u);
    ASSIGN_OR_RETURN(const auto trials, t.ListTrials(Name("a"), 0, 0));
    EXPECT_EQ(trials.size(), 1u);
    ASSIGN_OR_RETURN(const auto queues, t.TaskQueues(absl::FromUnixSeconds(1000), 10));
    EXPECT_EQ(queues.size(), 1u);
    EXPECT_EQ(queues.at(0).project, "default");
    ASSIGN_OR_RETURN(auto task, t.TakeTask(Name("a"), "prepare", absl::FromUnixSeconds(1000)));
    EXPECT_TRUE(task.has_value());
    EXPECT_EQ(task.value().priority(), 3);
    task->set_state(Task::LEASED);
    task->set_worker("w");
    RETURN_IF_ERROR(t.PutTask(*task));
    RETURN_IF_ERROR(t.AppendEvent(Name("a"), MakeEvent(1)));
    job.mutable_limit_time()->set_seconds(50);
    job.set_artifact_bytes(7);
    return t.UpdateJob(job);
  });
  ASSERT_TRUE(status.ok()) << status;
  const absl::Status read = store.Read([](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(const auto leased, reader.LeasedTasksOf({"w"}));
    EXPECT_EQ(leased.size(), 1u);
    ASSIGN_OR_RETURN(const auto past, reader.JobsPastLimit(absl::FromUnixSeconds(60), 10));
    EXPECT_EQ(past.size(), 1u);
    ASSIGN_OR_RETURN(const auto usage, reader.Usage("default"));
    EXPECT_EQ(usage.project_artifact_bytes, 7);
    ASSIGN_OR_RETURN(const StoreCounts counts, reader.Counts());
    EXPECT_EQ(counts.jobs.at(Job::RUNNING), 1);
    EXPECT_EQ(counts.tasks.at(Task::LEASED), 1);
    return absl::OkStatus();
  });
  EXPECT_TRUE(read.ok()) << read;
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(JobStoreContract);

using testing::ElementsAre;
using testing::IsEmpty;
using testing::Pair;
using testing::UnorderedElementsAre;

TEST_P(JobStoreContract, KeepsWhatWasWritten) {
  JobRecord record = MakeJob(Name("a"), Job::RUNNING, {{"team", "nlp"}});
  record.mutable_job()->set_display_name("a name");
  record.set_chosen_trial_index(7);
  Task task = MakeTask(Name("a"), "prepare");
  task.set_lease_token("token");
  Write([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(transaction.InsertJob(record));
    RETURN_IF_ERROR(transaction.InsertRequest("default", "request", {Name("a"), "print"}));
    RETURN_IF_ERROR(transaction.PutTask(task));
    RETURN_IF_ERROR(transaction.PutTrial(Name("a"), MakeTrial(1)));
    RETURN_IF_ERROR(transaction.AppendEvent(Name("a"), MakeEvent(1)));
    return transaction.PutArtifact(Name("a"), MakeArtifact(Name("a"), "model/config.json", "{}"));
  });
  for (int round = 0; round < 2; ++round) {
    EXPECT_EQ(GetJob(Name("a"))->SerializeAsString(), record.SerializeAsString());
    const absl::Status status = store_->Read([&](StoreReader& reader) -> absl::Status {
      ASSIGN_OR_RETURN(auto request, reader.FindRequest("default", "request"));
      EXPECT_TRUE(request.has_value());
      if (request) {
        EXPECT_EQ(request->job.ToString(), Name("a").ToString());
        EXPECT_EQ(request->fingerprint, "print");
      }
      ASSIGN_OR_RETURN(Task stored, reader.GetTask(Name("a"), "prepare"));
      EXPECT_EQ(stored.SerializeAsString(), task.SerializeAsString());
      ASSIGN_OR_RETURN(std::vector<v1::Trial> trials, reader.ListTrials(Name("a"), 0, 0));
      EXPECT_EQ(trials.size(), 1u);
      ASSIGN_OR_RETURN(std::vector<v1::JobEvent> events, reader.ListEvents(Name("a"), 0, 0));
      EXPECT_EQ(events.size(), 1u);
      ASSIGN_OR_RETURN(std::vector<v1::Artifact> artifacts, reader.ListArtifacts(Name("a")));
      EXPECT_EQ(artifacts.size(), 1u);
      return absl::OkStatus();
    });
    EXPECT_TRUE(status.ok()) << status;
    Reopen();  // The second round reads what was on disk.
  }
}

TEST_P(JobStoreContract, ARemovedArtifactIsNoLongerReferenced) {
  const v1::Artifact artifact = MakeArtifact(Name("a"), "checkpoint/x", "content");
  Write([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name("a"))));
    RETURN_IF_ERROR(transaction.PutArtifact(Name("a"), artifact));
    return transaction.PutArtifact(Name("a"), MakeArtifact(Name("a"), "b", "other"));
  });
  Write([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(transaction.RemoveArtifact(Name("a"), "checkpoint/x"));
    return transaction.RemoveArtifact(Name("a"), "never there");
  });
  const absl::Status status = store_->Read([&](StoreReader& reader) -> absl::Status {
    ASSIGN_OR_RETURN(const std::vector<v1::Artifact> left, reader.ListArtifacts(Name("a")));
    EXPECT_EQ(left.size(), 1u);
    ASSIGN_OR_RETURN(const bool referenced, reader.IsArtifactReferenced(artifact.sha256()));
    EXPECT_FALSE(referenced);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
}

TEST_P(JobStoreContract, SaysWhatIsMissing) {
  Write([&](StoreTransaction& transaction) { return transaction.InsertJob(MakeJob(Name("a"))); });
  const JobName none = Name("none");
  const absl::Status status = GetJob(none).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(status.message()), testing::HasSubstr(none.ToString()));
  // A job of the same id in another project is another job.
  EXPECT_EQ(GetJob({"other", "a"}).status().code(), absl::StatusCode::kNotFound);
  const auto expect_not_found = [](const absl::Status& status) {
    EXPECT_EQ(status.code(), absl::StatusCode::kNotFound) << status;
  };
  Write([&](StoreTransaction& transaction) {
    expect_not_found(transaction.GetTask(none, "prepare").status());
    expect_not_found(transaction.GetTask(Name("a"), "prepare").status());
    expect_not_found(transaction.ListTasks(none).status());
    expect_not_found(transaction.ListTrials(none, 0, 0).status());
    expect_not_found(transaction.ListEvents(none, 0, 0).status());
    expect_not_found(transaction.ListArtifacts(none).status());
    expect_not_found(transaction.UpdateJob(MakeJob(none)));
    expect_not_found(transaction.DeleteJob(none));
    expect_not_found(transaction.InsertRequest("default", "r", {none, ""}));
    expect_not_found(transaction.PutTask(MakeTask(none, "prepare")));
    expect_not_found(transaction.PutTrial(none, MakeTrial(1)));
    expect_not_found(transaction.PutArtifact(none, MakeArtifact(none, "a", "")));
    expect_not_found(transaction.RemoveArtifact(none, "a"));
    expect_not_found(transaction.AppendEvent(none, MakeEvent(1)));
    return absl::OkStatus();
  });
  EXPECT_FALSE(
      Value([](StoreReader& reader) { return reader.FindRequest("default", "r"); }).has_value());
}

TEST_P(JobStoreContract, RefusesDuplicates) {
  Write([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name("a"))));
    return transaction.InsertRequest("default", "request", {Name("a"), "print"});
  });
  const absl::Status job = store_->Transact([&](StoreTransaction& transaction) {
    return transaction.InsertJob(MakeJob(Name("a"), Job::RUNNING));
  });
  EXPECT_EQ(job.code(), absl::StatusCode::kAlreadyExists) << job;
  const absl::Status request = store_->Transact([&](StoreTransaction& transaction) {
    return transaction.InsertRequest("default", "request", {Name("a"), "other"});
  });
  EXPECT_EQ(request.code(), absl::StatusCode::kAlreadyExists) << request;
  EXPECT_EQ(GetJob(Name("a"))->job().state(), Job::PENDING);
}

TEST_P(JobStoreContract, RefusesRecordsThatDoNotFitTheirJob) {
  Write([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name("a"))));
    return transaction.InsertJob(MakeJob(Name("b")));
  });
  v1::Artifact unhashed = MakeArtifact(Name("a"), "x", "");
  unhashed.set_sha256("../../etc/passwd");
  JobRecord nameless;
  Write([&](StoreTransaction& transaction) {
    for (const absl::Status& status :
         {transaction.InsertJob(nameless), transaction.PutTask(Task()),
          transaction.PutArtifact(Name("a"), MakeArtifact(Name("b"), "x", "")),
          transaction.PutArtifact(Name("a"), unhashed),
          transaction.InsertRequest("other", "r", {Name("a"), ""})}) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    }
    return absl::OkStatus();
  });
}

TEST_P(JobStoreContract, WritesAllOrNothing) {
  Write([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name("a"), Job::PENDING, {{"k", "old"}})));
    return transaction.AppendEvent(Name("a"), MakeEvent(1));
  });
  const absl::Status status = store_->Transact([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(transaction.UpdateJob(MakeJob(Name("a"), Job::RUNNING, {{"k", "new"}})));
    RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name("b"))));
    RETURN_IF_ERROR(transaction.AppendEvent(Name("a"), MakeEvent(2)));
    RETURN_IF_ERROR(transaction.PutTask(MakeTask(Name("a"), "prepare")));
    return absl::FailedPreconditionError("changed my mind");
  });
  EXPECT_EQ(status, absl::FailedPreconditionError("changed my mind"));
  EXPECT_EQ(GetJob(Name("a"))->job().state(), Job::PENDING);
  EXPECT_EQ(GetJob(Name("b")).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Queued(1000), IsEmpty());
  EXPECT_EQ(Value([](StoreReader& reader) { return reader.ListEvents(Name("a"), 0, 0); }).size(),
            1u);
  EXPECT_THAT(Ids(List({"default", {}, {{"k", "old"}}}, 10).jobs), ElementsAre("a"));
  EXPECT_THAT(List({"default", {}, {{"k", "new"}}}, 10).jobs, IsEmpty());
  const StoreCounts counts = Value([](StoreReader& reader) { return reader.Counts(); });
  EXPECT_THAT(counts.jobs, ElementsAre(Pair(Job::PENDING, 1)));
  EXPECT_THAT(counts.tasks, IsEmpty());
}

TEST_P(JobStoreContract, TransactionReadsItsOwnWrites) {
  Write([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name("a"))));
    RETURN_IF_ERROR(transaction.UpdateJob(MakeJob(Name("a"), Job::RUNNING)));
    ASSIGN_OR_RETURN(const JobRecord record, transaction.GetJob(Name("a")));
    EXPECT_EQ(record.job().state(), Job::RUNNING);
    RETURN_IF_ERROR(transaction.PutTask(MakeTask(Name("a"), "prepare")));
    ASSIGN_OR_RETURN(const auto queues, transaction.TaskQueues(absl::InfiniteFuture(), 10));
    EXPECT_EQ(queues.size(), 1u);
    EXPECT_THAT(Ids(queues.at(0).tasks), ElementsAre("prepare"));
    RETURN_IF_ERROR(transaction.DeleteJob(Name("a")));
    EXPECT_EQ(transaction.ListTasks(Name("a")).status().code(), absl::StatusCode::kNotFound);
    // The name is free again, for a job without the old one's tasks.
    RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name("a"))));
    ASSIGN_OR_RETURN(const auto tasks, transaction.ListTasks(Name("a")));
    EXPECT_THAT(tasks, IsEmpty());
    return absl::OkStatus();
  });
}

TEST_P(JobStoreContract, BodyMayGoOnAfterARefusal) {
  Write([&](StoreTransaction& transaction) { return transaction.InsertJob(MakeJob(Name("a"))); });
  Write([&](StoreTransaction& transaction) -> absl::Status {
    EXPECT_TRUE(absl::IsAlreadyExists(transaction.InsertJob(MakeJob(Name("a")))));
    return transaction.InsertJob(MakeJob(Name("b")));
  });
  EXPECT_TRUE(GetJob(Name("b")).ok());
}

TEST_P(JobStoreContract, ReadsSeeOneMoment) {
  Write([&](StoreTransaction& transaction) { return transaction.InsertJob(MakeJob(Name("a"))); });
  const absl::Status status = store_->Read([&](StoreReader& reader) -> absl::Status {
    RETURN_IF_ERROR(reader.GetJob(Name("a")).status());
    std::thread writer([&] {
      Write([&](StoreTransaction& transaction) -> absl::Status {
        RETURN_IF_ERROR(transaction.UpdateJob(MakeJob(Name("a"), Job::RUNNING)));
        return transaction.InsertJob(MakeJob(Name("b")));
      });
    });
    writer.join();  // Readers do not hold up writers.
    ASSIGN_OR_RETURN(const JobRecord record, reader.GetJob(Name("a")));
    EXPECT_EQ(record.job().state(), Job::PENDING);
    EXPECT_EQ(reader.GetJob(Name("b")).status().code(), absl::StatusCode::kNotFound);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(GetJob(Name("a"))->job().state(), Job::RUNNING);
}

TEST_P(JobStoreContract, PassesOnTheErrorOfARead) {
  EXPECT_EQ(store_->Read([](StoreReader&) { return absl::OutOfRangeError("mine"); }),
            absl::OutOfRangeError("mine"));
}

// While one body holds the writer, others pile up behind it and are then run together.
TEST_P(JobStoreContract, OneCallersErrorIsNotAnothers) {
  std::atomic<bool> started = false, go_on = false;
  std::thread first([&] {
    EXPECT_TRUE(store_
                    ->Transact([&](StoreTransaction&) {
                      started = true;
                      started.notify_one();
                      go_on.wait(false);
                      return absl::OkStatus();
                    })
                    .ok());
  });
  started.wait(false);
  constexpr int kCallers = 24;
  std::vector<absl::Status> statuses(kCallers);
  std::vector<std::thread> callers;
  std::atomic<int> calling = 0;
  for (int i = 0; i < kCallers; ++i) {
    callers.emplace_back([&, i] {
      ++calling;
      statuses[i] = store_->Transact([&](StoreTransaction& transaction) -> absl::Status {
        const JobName name = Name(absl::StrCat("job-", i));
        RETURN_IF_ERROR(transaction.InsertJob(MakeJob(name)));
        RETURN_IF_ERROR(transaction.AppendEvent(name, MakeEvent(1)));
        if (i % 3 == 0) return absl::AbortedError(absl::StrCat("caller ", i));
        return absl::OkStatus();
      });
    });
  }
  while (calling < kCallers) std::this_thread::yield();
  go_on = true;
  go_on.notify_one();
  first.join();
  for (std::thread& caller : callers) caller.join();
  for (int i = 0; i < kCallers; ++i) {
    EXPECT_EQ(statuses[i],
              i % 3 == 0 ? absl::AbortedError(absl::StrCat("caller ", i)) : absl::OkStatus());
    EXPECT_EQ(GetJob(Name(absl::StrCat("job-", i))).ok(), i % 3 != 0) << i;
  }
}

TEST_P(JobStoreContract, ConcurrentCallersLoseNothing) {
  constexpr int kCallers = 16;
  constexpr int kRounds = 25;
  Write([&](StoreTransaction& transaction) {
    return transaction.InsertJob(MakeJob(Name("counter")));
  });
  std::atomic<bool> writing = true;
  // Each snapshot must hold as many events as the job says.
  std::thread reader([&] {
    while (writing) {
      const absl::Status status = store_->Read([&](StoreReader& reader) -> absl::Status {
        ASSIGN_OR_RETURN(const JobRecord record, reader.GetJob(Name("counter")));
        ASSIGN_OR_RETURN(const auto events, reader.ListEvents(Name("counter"), 0, 0));
        EXPECT_EQ(static_cast<int64_t>(events.size()), record.job().last_event_sequence());
        return absl::OkStatus();
      });
      EXPECT_TRUE(status.ok()) << status;
    }
  });
  std::vector<std::thread> callers;
  for (int i = 0; i < kCallers; ++i) {
    callers.emplace_back([&] {
      for (int round = 0; round < kRounds; ++round) {
        Write([&](StoreTransaction& transaction) -> absl::Status {
          ASSIGN_OR_RETURN(JobRecord record, transaction.GetJob(Name("counter")));
          const int64_t next = record.job().last_event_sequence() + 1;
          record.mutable_job()->set_last_event_sequence(next);
          RETURN_IF_ERROR(transaction.AppendEvent(Name("counter"), MakeEvent(next)));
          return transaction.UpdateJob(record);
        });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  writing = false;
  reader.join();
  EXPECT_EQ(GetJob(Name("counter"))->job().last_event_sequence(), kCallers * kRounds);
}

TEST_P(JobStoreContract, EventsHaveNoGaps) {
  Write([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name("a"))));
    RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name("b"))));
    RETURN_IF_ERROR(transaction.AppendEvent(Name("b"), MakeEvent(1)));  // Counted on its own.
    for (int i = 1; i <= 5; ++i) RETURN_IF_ERROR(transaction.AppendEvent(Name("a"), MakeEvent(i)));
    return absl::OkStatus();
  });
  const auto append = [&](int64_t sequence) {
    return store_
        ->Transact([&](StoreTransaction& transaction) {
          return transaction.AppendEvent(Name("a"), MakeEvent(sequence));
        })
        .code();
  };
  EXPECT_EQ(append(5), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(append(0), absl::StatusCode::kAlreadyExists);
  EXPECT_EQ(append(7), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(append(6), absl::StatusCode::kOk);
  const auto sequences = [&](int64_t after, int limit) {
    std::vector<int64_t> found;
    auto events =
        Read([&](StoreReader& reader) { return reader.ListEvents(Name("a"), after, limit); });
    for (const v1::JobEvent& event : *events) found.push_back(event.sequence());
    return found;
  };
  EXPECT_THAT(sequences(0, 0), ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(sequences(2, 3), ElementsAre(3, 4, 5));
  EXPECT_THAT(sequences(6, 10), IsEmpty());
}

TEST_P(JobStoreContract, QueueIsByPriorityThenCreationThenInsertion) {
  Write([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name("a"))));
    RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name("b"))));
    RETURN_IF_ERROR(transaction.PutTask(MakeTask(Name("a"), "late", Task::QUEUED, 300)));
    RETURN_IF_ERROR(transaction.PutTask(MakeTask(Name("a"), "tie-1", Task::QUEUED, 200)));
    RETURN_IF_ERROR(transaction.PutTask(MakeTask(Name("b"), "tie-2", Task::QUEUED, 200)));
    Task urgent = MakeTask(Name("b"), "urgent", Task::QUEUED, 400);
    urgent.set_priority(5);
    RETURN_IF_ERROR(transaction.PutTask(urgent));
    Task idle = MakeTask(Name("b"), "idle", Task::QUEUED, 1);
    idle.set_priority(-100);
    RETURN_IF_ERROR(transaction.PutTask(idle));
    Task backing_off = MakeTask(Name("b"), "backing-off", Task::QUEUED, 1);
    backing_off.mutable_not_before()->set_seconds(1000);
    backing_off.mutable_not_before()->set_nanos(1);
    RETURN_IF_ERROR(transaction.PutTask(backing_off));
    RETURN_IF_ERROR(transaction.PutTask(MakeTask(Name("b"), "leased", Task::LEASED, 1)));
    return transaction.PutTask(MakeTask(Name("b"), "done", Task::SUCCEEDED, 1));
  });
  EXPECT_THAT(Queued(1000), ElementsAre("urgent", "tie-1", "tie-2", "late", "idle"));
  EXPECT_THAT(Queued(1000, 2), ElementsAre("urgent", "tie-1"));
  EXPECT_THAT(Queued(1001), ElementsAre("urgent", "backing-off", "tie-1", "tie-2", "late", "idle"));
  // Replacing a task keeps its place among equals.
  Write([&](StoreTransaction& transaction) {
    return transaction.PutTask(MakeTask(Name("a"), "tie-1", Task::QUEUED, 200));
  });
  EXPECT_THAT(Queued(1000, 3), ElementsAre("urgent", "tie-1", "tie-2"));
  EXPECT_THAT(Ids(Value([](StoreReader& reader) { return reader.ListTasks(Name("b")); })),
              ElementsAre("tie-2", "urgent", "idle", "backing-off", "leased", "done"));

  const auto next = [&](absl::Time now) {
    return Value([&](StoreReader& reader) { return reader.NextNotBefore(now); });
  };
  const absl::Time due = absl::FromUnixSeconds(1000) + absl::Nanoseconds(1);
  EXPECT_EQ(next(absl::FromUnixSeconds(1000)), due);
  EXPECT_EQ(next(absl::InfinitePast()).value_or(absl::InfiniteFuture()), absl::UnixEpoch());
  EXPECT_EQ(next(due), std::nullopt);
  EXPECT_EQ(next(absl::InfiniteFuture()), std::nullopt);
}

TEST_P(JobStoreContract, EachProjectAndNeedForMemoryHasAQueue) {
  const auto put = [](StoreTransaction& transaction, const std::string& project,
                      const std::string& id, int64_t memory, int64_t create_seconds,
                      int64_t not_before = 0) {
    Task task = MakeTask({project, "j"}, id, Task::QUEUED, create_seconds);
    task.mutable_spec()->mutable_spec()->mutable_limits()->set_min_device_memory_bytes(memory);
    task.mutable_not_before()->set_seconds(not_before);
    return transaction.PutTask(task);
  };
  constexpr int64_t kGiB = int64_t{1} << 30;
  Write([&](StoreTransaction& transaction) -> absl::Status {
    for (const char* project : {"b", "a", "done", "idle"}) {
      RETURN_IF_ERROR(transaction.InsertJob(MakeJob({project, "j"})));
    }
    for (int i = 0; i < 5; ++i) {
      RETURN_IF_ERROR(put(transaction, "b", absl::StrCat("b", i), 0, 100 - i));
    }
    RETURN_IF_ERROR(put(transaction, "a", "24g", 24 * kGiB, 1));
    RETURN_IF_ERROR(put(transaction, "a", "24g-more", 24 * kGiB + 5, 2));
    RETURN_IF_ERROR(put(transaction, "a", "1g", kGiB, 3));
    RETURN_IF_ERROR(put(transaction, "a", "little", kGiB - 1, 4));
    RETURN_IF_ERROR(put(transaction, "idle", "later", 0, 1, 5000));
    return transaction.PutTask(MakeTask({"done", "j"}, "done", Task::SUCCEEDED));
  });
  const auto queues = [&](int64_t now, int limit) {
    std::vector<std::string> text;
    for (const auto& queue : Value([&](StoreReader& reader) {
           return reader.TaskQueues(absl::FromUnixSeconds(now), limit);
         })) {
      text.push_back(absl::StrCat(queue.project, "/", queue.need_class));
      for (const std::string& id : Ids(queue.tasks)) absl::StrAppend(&text.back(), " ", id);
    }
    return text;
  };
  EXPECT_THAT(queues(1000, 3),
              ElementsAre("a/0 little", "a/1 1g", "a/24 24g 24g-more", "b/0 b4 b3 b2"));
  EXPECT_THAT(queues(5000, 1),
              ElementsAre("a/0 little", "a/1 1g", "a/24 24g", "b/0 b4", "idle/0 later"));
}

TEST_P(JobStoreContract, ATaskIsTakenOnlyWhileItIsDue) {
  Write([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name("a"))));
    Task later = MakeTask(Name("a"), "later");
    later.mutable_not_before()->set_seconds(1000);
    RETURN_IF_ERROR(transaction.PutTask(later));
    return transaction.PutTask(MakeTask(Name("a"), "leased", Task::LEASED));
  });
  const auto take = [&](const JobName& job, const std::string& id, int64_t now) {
    std::optional<Task> taken;
    Write([&](StoreTransaction& transaction) -> absl::Status {
      ASSIGN_OR_RETURN(taken, transaction.TakeTask(job, id, absl::FromUnixSeconds(now)));
      return absl::OkStatus();
    });
    return taken ? taken->task_id() : "";
  };
  EXPECT_EQ(take(Name("a"), "later", 1000), "later");
  EXPECT_EQ(take(Name("a"), "later", 999), "");
  EXPECT_EQ(take(Name("a"), "leased", 1000), "");
  EXPECT_EQ(take(Name("a"), "none", 1000), "");
  EXPECT_EQ(take(Name("none"), "later", 1000), "");
}

TEST_P(JobStoreContract, LeasedTasksAreByExpiry) {
  Write([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name("a"))));
    for (const int expiry : {30, 10, 20}) {
      Task task = MakeTask(Name("a"), absl::StrCat("t", expiry), Task::LEASED);
      task.mutable_lease_expire_time()->set_seconds(expiry);
      RETURN_IF_ERROR(transaction.PutTask(task));
    }
    return transaction.PutTask(MakeTask(Name("a"), "queued"));
  });
  const auto leased = [&] {
    return Ids(Value([](StoreReader& reader) { return reader.LeasedTasks(); }));
  };
  EXPECT_THAT(leased(), ElementsAre("t10", "t20", "t30"));
  Write([&](StoreTransaction& transaction) -> absl::Status {
    Task task = MakeTask(Name("a"), "t10", Task::LEASED);
    task.mutable_lease_expire_time()->set_seconds(40);
    RETURN_IF_ERROR(transaction.PutTask(task));
    return transaction.PutTask(MakeTask(Name("a"), "t20", Task::SUCCEEDED));
  });
  EXPECT_THAT(leased(), ElementsAre("t30", "t10"));
}

TEST_P(JobStoreContract, LeasedTasksOfAWorkerAreItsOwn) {
  Write([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name("a"))));
    for (const char* worker : {"w1", "w2", "null"}) {
      for (const auto state : {Task::LEASED, Task::QUEUED}) {
        Task task = MakeTask(Name("a"), absl::StrCat(worker, "-", state), state);
        task.set_worker(worker);
        RETURN_IF_ERROR(transaction.PutTask(task));
      }
    }
    return absl::OkStatus();
  });
  const auto leased = [&](const std::vector<std::string>& workers) {
    return Ids(Value([&](StoreReader& reader) { return reader.LeasedTasksOf(workers); }));
  };
  EXPECT_THAT(leased({"w1"}), ElementsAre(absl::StrCat("w1-", Task::LEASED)));
  EXPECT_THAT(
      leased({"w2", "nobody", "w1"}),
      UnorderedElementsAre(absl::StrCat("w1-", Task::LEASED), absl::StrCat("w2-", Task::LEASED)));
  EXPECT_THAT(leased({"null"}), ElementsAre(absl::StrCat("null-", Task::LEASED)));
  EXPECT_THAT(leased({"nobody"}), IsEmpty());
  EXPECT_THAT(leased({}), IsEmpty());
}

TEST_P(JobStoreContract, LastEventSequencesAreOfTheJobsThatAreThere) {
  Write([&](StoreTransaction& transaction) -> absl::Status {
    for (const char* job : {"a", "b", "quiet", "null"}) {
      RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name(job))));
    }
    RETURN_IF_ERROR(transaction.AppendEvent(Name("a"), MakeEvent(1)));
    RETURN_IF_ERROR(transaction.AppendEvent(Name("a"), MakeEvent(2)));
    return transaction.AppendEvent(Name("b"), MakeEvent(1));
  });
  const auto last = [&](const std::vector<JobName>& jobs) {
    return Value([&](StoreReader& reader) { return reader.LastEventSequences(jobs); });
  };
  EXPECT_THAT(
      last({Name("quiet"), Name("a"), Name("none"), {"other", "b"}}),
      UnorderedElementsAre(Pair(Name("a").ToString(), 2), Pair(Name("quiet").ToString(), 0)));
  EXPECT_THAT(last({Name("null")}), UnorderedElementsAre(Pair(Name("null").ToString(), 0)));
  EXPECT_THAT(last({}), IsEmpty());
}

TEST_P(JobStoreContract, TrialsAreByIndexAndReplaced) {
  Write([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name("a"))));
    for (const int index : {3, 1, 10, 2}) {
      RETURN_IF_ERROR(transaction.PutTrial(Name("a"), MakeTrial(index)));
    }
    v1::Trial done = MakeTrial(3);
    done.set_state(v1::Trial::SUCCEEDED);
    return transaction.PutTrial(Name("a"), done);
  });
  const auto trials = [&](int after, int limit) {
    std::vector<std::pair<int, v1::Trial::State>> found;
    for (const v1::Trial& trial :
         Value([&](StoreReader& reader) { return reader.ListTrials(Name("a"), after, limit); })) {
      found.emplace_back(trial.index(), trial.state());
    }
    return found;
  };
  EXPECT_THAT(trials(0, 0),
              ElementsAre(Pair(1, v1::Trial::QUEUED), Pair(2, v1::Trial::QUEUED),
                          Pair(3, v1::Trial::SUCCEEDED), Pair(10, v1::Trial::QUEUED)));
  EXPECT_THAT(trials(1, 2), ElementsAre(Pair(2, v1::Trial::QUEUED), Pair(3, v1::Trial::SUCCEEDED)));
}

TEST_P(JobStoreContract, ArtifactsAreByPathAndKnownByContent) {
  Write([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name("a"))));
    RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name("b"))));
    RETURN_IF_ERROR(transaction.PutArtifact(Name("a"), MakeArtifact(Name("a"), "z", "shared")));
    RETURN_IF_ERROR(transaction.PutArtifact(Name("a"), MakeArtifact(Name("a"), "a/b", "own")));
    return transaction.PutArtifact(Name("b"), MakeArtifact(Name("b"), "z", "shared"));
  });
  std::vector<std::string> names;
  for (const v1::Artifact& artifact :
       Value([](StoreReader& reader) { return reader.ListArtifacts(Name("a")); })) {
    names.push_back(artifact.name());
  }
  EXPECT_THAT(names, ElementsAre(Name("a").ArtifactName("a/b"), Name("a").ArtifactName("z")));
  const auto referenced = [&](const std::string& content) {
    return Value(
        [&](StoreReader& reader) { return reader.IsArtifactReferenced(Sha256Hex(content)); });
  };
  EXPECT_TRUE(referenced("shared"));
  EXPECT_TRUE(referenced("own"));
  EXPECT_FALSE(referenced("none"));
  Write([&](StoreTransaction& transaction) { return transaction.DeleteJob(Name("a")); });
  EXPECT_TRUE(referenced("shared"));
  EXPECT_FALSE(referenced("own"));
  Write([&](StoreTransaction& transaction) {
    return transaction.PutArtifact(Name("b"), MakeArtifact(Name("b"), "z", "new"));
  });
  EXPECT_FALSE(referenced("shared"));
}

TEST_P(JobStoreContract, DeletingAJobTakesAllThatBelongsToIt) {
  Write([&](StoreTransaction& transaction) -> absl::Status {
    for (const char* id : {"doomed", "kept"}) {
      const JobName name = Name(id);
      RETURN_IF_ERROR(transaction.InsertJob(MakeJob(name, Job::RUNNING, {{"team", "nlp"}})));
      RETURN_IF_ERROR(transaction.InsertRequest("default", id, {name, "print"}));
      RETURN_IF_ERROR(transaction.PutTask(MakeTask(name, absl::StrCat(id, "-task"))));
      RETURN_IF_ERROR(transaction.PutTrial(name, MakeTrial(1)));
      RETURN_IF_ERROR(transaction.AppendEvent(name, MakeEvent(1)));
      RETURN_IF_ERROR(transaction.PutArtifact(name, MakeArtifact(name, "x", id)));
    }
    return absl::OkStatus();
  });
  Write([&](StoreTransaction& transaction) { return transaction.DeleteJob(Name("doomed")); });
  EXPECT_THAT(Queued(1000), ElementsAre("kept-task"));
  EXPECT_THAT(Ids(List({"default", {}, {{"team", "nlp"}}}, 10).jobs), ElementsAre("kept"));
  const absl::Status status = store_->Read([&](StoreReader& reader) -> absl::Status {
    EXPECT_FALSE(reader.FindRequest("default", "doomed")->has_value());
    EXPECT_TRUE(reader.FindRequest("default", "kept")->has_value());
    EXPECT_FALSE(*reader.IsArtifactReferenced(Sha256Hex("doomed")));
    EXPECT_EQ(reader.ListEvents(Name("kept"), 0, 0)->size(), 1u);
    const StoreCounts counts = *reader.Counts();
    EXPECT_THAT(counts.jobs, ElementsAre(Pair(Job::RUNNING, 1)));
    EXPECT_THAT(counts.tasks, ElementsAre(Pair(Task::QUEUED, 1)));
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status;
  // A job of the same name starts from nothing.
  Write([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name("doomed"))));
    EXPECT_THAT(*transaction.ListTrials(Name("doomed"), 0, 0), IsEmpty());
    EXPECT_THAT(*transaction.ListArtifacts(Name("doomed")), IsEmpty());
    return transaction.AppendEvent(Name("doomed"), MakeEvent(1));
  });
}

TEST_P(JobStoreContract, ListsNewestFirstInPages) {
  for (int i = 0; i < 7; ++i) {
    Write([&](StoreTransaction& transaction) -> absl::Status {
      RETURN_IF_ERROR(transaction.InsertJob(MakeJob({"other", absl::StrCat("x", i)})));
      return transaction.InsertJob(MakeJob(Name(absl::StrCat("j", i))));
    });
  }
  const JobFilter filter{"default", {}, {}};
  StoreReader::JobPage page = List(filter, 3);
  EXPECT_THAT(Ids(page.jobs), ElementsAre("j6", "j5", "j4"));
  // What is added meanwhile belongs to no later page, and what is deleted does no harm.
  Write([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name("new"))));
    return transaction.DeleteJob(Name("j4"));
  });
  page = List(filter, 3, page.next_page_token);
  EXPECT_THAT(Ids(page.jobs), ElementsAre("j3", "j2", "j1"));
  page = List(filter, 3, page.next_page_token);
  EXPECT_THAT(Ids(page.jobs), ElementsAre("j0"));
  EXPECT_EQ(page.next_page_token, "");
  // A last page that is just full has no next one.
  EXPECT_EQ(List(filter, 7).next_page_token, "");
  EXPECT_THAT(List({"nobody", {}, {}}, 3).jobs, IsEmpty());
}

TEST_P(JobStoreContract, PagesOfSeveralStatesAreInOneOrder) {
  const std::vector<Job::State> states = {Job::PENDING, Job::RUNNING, Job::FAILED};
  Write([&](StoreTransaction& transaction) -> absl::Status {
    for (int i = 0; i < 12; ++i) {
      RETURN_IF_ERROR(
          transaction.InsertJob(MakeJob(Name(absl::StrCat("j", i)), states[i * 7 % 3])));
      RETURN_IF_ERROR(transaction.InsertJob(MakeJob({"other", absl::StrCat("x", i)})));
    }
    return absl::OkStatus();
  });
  std::vector<std::string> listed;
  const JobFilter filter{"default", {Job::FAILED, Job::PENDING, Job::FAILED}, {}};
  std::string token;
  do {
    const StoreReader::JobPage page = List(filter, 3, token);
    for (const std::string& id : Ids(page.jobs)) listed.push_back(id);
    token = page.next_page_token;
  } while (!token.empty());
  EXPECT_THAT(listed, ElementsAre("j11", "j9", "j8", "j6", "j5", "j3", "j2", "j0"));
}

TEST_P(JobStoreContract, WhatClientsSeeOfAJobIsAllOfThat) {
  JobRecord record = MakeJob(Name("a"), Job::RUNNING, {{"k", "v"}});
  record.mutable_job()->mutable_spec()->mutable_model()->set_uri("file:///m");
  record.mutable_prepare()->add_groups()->set_name("g");
  record.set_plan_count(7);
  Write([&](StoreTransaction& transaction) { return transaction.InsertJob(record); });
  const Job shown = Value([](StoreReader& reader) { return reader.ShowJob(Name("a")); });
  EXPECT_EQ(shown.SerializeAsString(), record.job().SerializeAsString());
  EXPECT_EQ(List({"default", {}, {}}, 1).jobs[0].SerializeAsString(), shown.SerializeAsString());
  const auto missing = Read([](StoreReader& reader) { return reader.ShowJob(Name("none")); });
  EXPECT_TRUE(absl::IsNotFound(missing.status()));
}

TEST_P(JobStoreContract, DeletedNewestJobDoesNotBringOldOnesIntoLaterPages) {
  Write([&](StoreTransaction& transaction) -> absl::Status {
    for (const char* id : {"a", "b", "c"}) {
      RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name(id))));
    }
    return absl::OkStatus();
  });
  const JobFilter filter{"default", {}, {}};
  const StoreReader::JobPage page = List(filter, 1);
  Write([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(transaction.DeleteJob(Name("c")));
    return transaction.InsertJob(MakeJob(Name("d")));  // Must not take c's place in the order.
  });
  EXPECT_THAT(Ids(List(filter, 9, page.next_page_token).jobs), ElementsAre("b", "a"));
}

TEST_P(JobStoreContract, FiltersByStateAndLabels) {
  Write([&](StoreTransaction& transaction) -> absl::Status {
    int i = 0;
    for (const auto state : {Job::PENDING, Job::RUNNING, Job::SUCCEEDED}) {
      for (const char* team : {"nlp", "vision"}) {
        RETURN_IF_ERROR(transaction.InsertJob(
            MakeJob(Name(absl::StrCat("j", i++)), state, {{"team", team}, {"gpu", "yes"}})));
      }
    }
    return transaction.InsertJob(
        MakeJob({"other", "x"}, Job::PENDING, {{"team", "nlp"}, {"gpu", "yes"}}));
  });
  using State = Job::State;
  const auto list = [&](std::vector<State> states, std::map<std::string, std::string> labels) {
    return Ids(List({"default", std::move(states), std::move(labels)}, 100).jobs);
  };
  EXPECT_THAT(list({Job::RUNNING}, {}), ElementsAre("j3", "j2"));
  EXPECT_THAT(list({Job::SUCCEEDED, Job::PENDING, Job::PENDING}, {}),
              ElementsAre("j5", "j4", "j1", "j0"));
  EXPECT_THAT(list({}, {{"team", "nlp"}}), ElementsAre("j4", "j2", "j0"));
  EXPECT_THAT(list({}, {{"team", "nlp"}, {"gpu", "yes"}}), ElementsAre("j4", "j2", "j0"));
  EXPECT_THAT(list({}, {{"team", "nlp"}, {"gpu", "no"}}), IsEmpty());
  EXPECT_THAT(list({Job::CANCELLED}, {}), IsEmpty());
  EXPECT_THAT(list({Job::RUNNING}, {{"team", "nlp"}}), ElementsAre("j2"));
  // Text that would end a string in SQL is just text.
  EXPECT_THAT(list({}, {{"team", "nlp' OR '1'='1"}}), IsEmpty());

  const JobFilter filter{"default", {}, {{"gpu", "yes"}}};
  StoreReader::JobPage page = List(filter, 4);
  EXPECT_THAT(Ids(page.jobs), ElementsAre("j5", "j4", "j3", "j2"));
  EXPECT_THAT(Ids(List(filter, 4, page.next_page_token).jobs), ElementsAre("j1", "j0"));

  // Filters follow updates.
  Write([&](StoreTransaction& transaction) {
    return transaction.UpdateJob(MakeJob(Name("j2"), Job::CANCELLED, {{"team", "speech"}}));
  });
  EXPECT_THAT(list({}, {{"team", "nlp"}}), ElementsAre("j4", "j0"));
  EXPECT_THAT(list({}, {{"gpu", "yes"}}), ElementsAre("j5", "j4", "j3", "j1", "j0"));
  EXPECT_THAT(list({Job::CANCELLED}, {{"team", "speech"}}), ElementsAre("j2"));
}

TEST_P(JobStoreContract, RefusesForeignPageTokens) {
  Write([&](StoreTransaction& transaction) -> absl::Status {
    for (const char* id : {"a", "b", "c"}) {
      RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name(id))));
    }
    return absl::OkStatus();
  });
  const JobFilter filter{"default", {}, {}};
  const std::string token = List(filter, 1).next_page_token;
  ASSERT_NE(token, "");
  const auto code = [&](const JobFilter& filter, const std::string& token) {
    return Read([&](StoreReader& reader) { return reader.ListJobs(filter, 1, token); })
        .status()
        .code();
  };
  EXPECT_EQ(code(filter, token), absl::StatusCode::kOk);
  for (const std::string& bad :
       {std::string("1"), std::string("not a token"), token + "A", token.substr(1),
        token.substr(0, token.size() - 1), std::string(1000, 'A'), std::string("\0\xff", 2)}) {
    EXPECT_EQ(code(filter, bad), absl::StatusCode::kInvalidArgument) << bad;
  }
  for (const JobFilter& other :
       {JobFilter{"other", {}, {}}, JobFilter{"default", {Job::PENDING}, {}},
        JobFilter{"default", {}, {{"k", "v"}}}}) {
    EXPECT_EQ(code(other, token), absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(
      Read([&](StoreReader& reader) { return reader.ListJobs(filter, 0, ""); }).status().code(),
      absl::StatusCode::kInvalidArgument);
}

TEST_P(JobStoreContract, UnplannedJobsAreThoseThatRunByPriorityAndThoseWithoutATask) {
  using Job = JobStoreContract::Job;
  const auto insert = [](StoreTransaction& transaction, const std::string& id, Job::State state,
                         std::optional<int> priority) -> absl::Status {
    RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name(id), state)));
    if (!priority) return absl::OkStatus();
    Task task = MakeTask(Name(id), "prepare");
    task.set_priority(*priority);
    RETURN_IF_ERROR(transaction.PutTask(task));
    task = MakeTask(Name(id), "trial-1", Task::SUCCEEDED);
    task.set_priority(*priority);
    return transaction.PutTask(task);
  };
  Write([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(insert(transaction, "bare", Job::PENDING, std::nullopt));
    RETURN_IF_ERROR(insert(transaction, "waits", Job::PENDING, 9));
    RETURN_IF_ERROR(insert(transaction, "low", Job::RUNNING, -1));
    RETURN_IF_ERROR(insert(transaction, "usual", Job::RUNNING, 0));
    RETURN_IF_ERROR(insert(transaction, "high", Job::RUNNING, 7));
    RETURN_IF_ERROR(insert(transaction, "usual-too", Job::RUNNING, 0));
    for (const Job::State state : {Job::CANCELLING, Job::SUCCEEDED, Job::FAILED, Job::CANCELLED,
                                   Job::PAUSING, Job::PAUSED}) {
      RETURN_IF_ERROR(
          insert(transaction, absl::StrCat("s", static_cast<int>(state)), state, std::nullopt));
    }
    return absl::OkStatus();
  });
  const auto unplanned = [&] {
    std::vector<std::string> ids;
    for (const JobName& name : Value([](StoreReader& reader) { return reader.UnplannedJobs(); })) {
      ids.push_back(name.job);
    }
    return ids;
  };
  EXPECT_THAT(unplanned(), ElementsAre("high", "usual", "usual-too", "low", "bare"));
  Write([&](StoreTransaction& transaction) {
    return transaction.UpdateJob(MakeJob(Name("usual"), Job::SUCCEEDED));
  });
  EXPECT_THAT(unplanned(), ElementsAre("high", "usual-too", "low", "bare"));
}

TEST_P(JobStoreContract, HasANameOfItsOwn) {
  const absl::StatusOr<std::string> identity = store_->Identity();
  ASSERT_TRUE(identity.ok()) << identity.status();
  EXPECT_GT(identity->size(), 10u);
  Reopen();
  EXPECT_EQ(*store_->Identity(), *identity);
}

TEST_P(JobStoreContract, OldestJobsAreInTheOrderOfInsertion) {
  for (const char* id : {"c", "a", "b"}) {
    Write([&](StoreTransaction& transaction) { return transaction.InsertJob(MakeJob(Name(id))); });
  }
  Write([&](StoreTransaction& transaction) { return transaction.InsertJob(MakeJob({"p2", "x"})); });
  std::vector<std::string> names;
  StoreReader::JobsByAge page;
  do {
    page = Value([&](StoreReader& reader) { return reader.OldestJobs(page.position, 3); });
    for (const auto& record : page.jobs) names.push_back(record.job().name());
  } while (!page.jobs.empty());
  EXPECT_THAT(names, ElementsAre(Name("c").ToString(), Name("a").ToString(), Name("b").ToString(),
                                 "projects/p2/jobs/x"));
  EXPECT_GT(page.position, 0);
  // What was deleted leaves no gap to fall into.
  Write([&](StoreTransaction& transaction) { return transaction.DeleteJob(Name("a")); });
  page = Value([&](StoreReader& reader) { return reader.OldestJobs(0, 2); });
  ASSERT_EQ(page.jobs.size(), 2u);
  EXPECT_EQ(page.jobs[1].job().name(), Name("b").ToString());
}

// Of half a character, as a cut in the wrong place leaves it: protobuf writes it and refuses to
// read it.
TEST_P(JobStoreContract, ARecordThatCannotBeReadHidesNoOther) {
  for (const char* id : {"a", "b", "c"}) {
    JobRecord job = MakeJob(Name(id));
    Task queued = MakeTask(Name(id), "queued");
    Task leased = MakeTask(Name(id), "leased", Task::LEASED);
    leased.set_worker("w");
    if (*id == 'b') {
      job.mutable_job()->mutable_progress()->set_message("\xC3");
      queued.mutable_error()->set_message("\xC3");
      leased.mutable_error()->set_message("\xC3");
    }
    Write([&](StoreTransaction& store) {
      RETURN_IF_ERROR(store.InsertJob(job));
      RETURN_IF_ERROR(store.PutTask(queued));
      return store.PutTask(leased);
    });
  }
  EXPECT_TRUE(absl::IsDataLoss(GetJob(Name("b")).status()));
  const auto show = [](StoreReader& reader) { return reader.ShowJob(Name("b")); };
  EXPECT_TRUE(absl::IsDataLoss(Read(show).status()));
  EXPECT_TRUE(absl::IsDataLoss(
      Read([&](StoreReader& reader) { return reader.GetTask(Name("b"), "queued"); }).status()));

  EXPECT_THAT(Queued(1000), testing::ElementsAre("queued", "queued"));
  EXPECT_EQ(Value([](StoreReader& reader) { return reader.LeasedTasks(); }).size(), 2u);
  EXPECT_EQ(Value([](StoreReader& reader) { return reader.LeasedTasksOf({"w"}); }).size(), 2u);
  const auto oldest = Value([](StoreReader& reader) { return reader.OldestJobs(0, 2); });
  EXPECT_THAT(Ids(oldest.jobs), testing::ElementsAre("a"));
  EXPECT_THAT(
      Ids(Value([&](StoreReader& reader) { return reader.OldestJobs(oldest.position, 2); }).jobs),
      testing::ElementsAre("c"));
  const StoreReader::JobPage newest = List({.project = "default"}, 2);
  EXPECT_THAT(Ids(newest.jobs), testing::ElementsAre("c"));
  EXPECT_THAT(Ids(List({.project = "default"}, 2, newest.next_page_token).jobs),
              testing::ElementsAre("a"));
}

// As many of them as a list has places, at its head.
TEST_P(JobStoreContract, TasksThatCannotBeReadTakeNoPlaceInTheirQueue) {
  Write([&](StoreTransaction& store) -> absl::Status {
    RETURN_IF_ERROR(store.InsertJob(MakeJob(Name("a"))));
    for (int i = 0; i < 100; ++i) {
      Task damaged = MakeTask(Name("a"), absl::StrCat("damaged-", i), Task::QUEUED, 100 + i);
      MakeUnreadable(damaged);
      RETURN_IF_ERROR(store.PutTask(damaged));
    }
    RETURN_IF_ERROR(store.PutTask(MakeTask(Name("a"), "first", Task::QUEUED, 300)));
    RETURN_IF_ERROR(store.PutTask(MakeTask(Name("a"), "second", Task::QUEUED, 301)));
    return store.PutTask(MakeTask(Name("a"), "third", Task::QUEUED, 302));
  });
  EXPECT_THAT(Queued(1000, 2), testing::ElementsAre("first", "second"));
  EXPECT_THAT(Queued(1000, 50), testing::ElementsAre("first", "second", "third"));
}

// Only the job itself answers for what belongs to it.
TEST_P(JobStoreContract, RowsOfAJobThatCannotBeReadAreDataLoss) {
  Write([&](StoreTransaction& store) -> absl::Status {
    RETURN_IF_ERROR(store.InsertJob(MakeJob(Name("a"))));
    v1::Trial trial = MakeTrial(1);
    MakeUnreadable(trial);
    RETURN_IF_ERROR(store.PutTrial(Name("a"), trial));
    v1::JobEvent event = MakeEvent(1);
    MakeUnreadable(event);
    RETURN_IF_ERROR(store.AppendEvent(Name("a"), event));
    v1::Artifact artifact = MakeArtifact(Name("a"), "model/x", "content");
    MakeUnreadable(artifact);
    return store.PutArtifact(Name("a"), artifact);
  });
  EXPECT_TRUE(absl::IsDataLoss(
      Read([](StoreReader& reader) { return reader.ListTrials(Name("a"), 0, 0); }).status()));
  EXPECT_TRUE(absl::IsDataLoss(
      Read([](StoreReader& reader) { return reader.ListEvents(Name("a"), 0, 0); }).status()));
  EXPECT_TRUE(absl::IsDataLoss(
      Read([](StoreReader& reader) { return reader.ListArtifacts(Name("a")); }).status()));
  EXPECT_TRUE(GetJob(Name("a")).ok());
}

TEST_P(JobStoreContract, UsageCountsWhatWaitsAndWhatIsStored) {
  const auto put = [](StoreTransaction& transaction, const JobName& name, Job::State state,
                      int64_t bytes) {
    JobRecord record = MakeJob(name, state);
    record.set_artifact_bytes(bytes);
    return transaction.InsertJob(record);
  };
  Write([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(put(transaction, {"a", "waits"}, Job::PENDING, 0));
    RETURN_IF_ERROR(put(transaction, {"a", "runs"}, Job::RUNNING, 5'000'000'000));
    RETURN_IF_ERROR(put(transaction, {"a", "done"}, Job::SUCCEEDED, 10));
    return put(transaction, {"b", "waits"}, Job::PENDING, 7);
  });
  const auto usage = [&](const std::string& project) {
    return Value([&](StoreReader& reader) { return reader.Usage(project); });
  };
  EXPECT_EQ(usage("a").queued_jobs, 2);
  EXPECT_EQ(usage("a").project_queued_jobs, 1);
  EXPECT_EQ(usage("a").project_artifact_bytes, 5'000'000'010);
  EXPECT_EQ(usage("none").queued_jobs, 2);
  EXPECT_EQ(usage("none").project_queued_jobs, 0);
  EXPECT_EQ(usage("none").project_artifact_bytes, 0);
  Write([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(transaction.UpdateJob(MakeJob({"a", "waits"}, Job::RUNNING)));
    return transaction.DeleteJob({"a", "done"});
  });
  EXPECT_EQ(usage("a").queued_jobs, 1);
  EXPECT_EQ(usage("a").project_artifact_bytes, 5'000'000'000);
}

TEST_P(JobStoreContract, UsageEndsAtTheLargestNumber) {
  Write([&](StoreTransaction& transaction) -> absl::Status {
    for (const char* job : {"one", "two", "three"}) {
      JobRecord record = MakeJob({"a", job}, Job::RUNNING);
      record.set_artifact_bytes(std::numeric_limits<int64_t>::max());
      RETURN_IF_ERROR(transaction.InsertJob(record));
    }
    return absl::OkStatus();
  });
  EXPECT_EQ(Value([&](StoreReader& reader) { return reader.Usage("a"); }).project_artifact_bytes,
            std::numeric_limits<int64_t>::max());
}

TEST_P(JobStoreContract, JobsPastTheirLimitAreByTime) {
  const auto past = [&](int64_t seconds, int limit = 10) {
    std::vector<std::string> jobs;
    for (const JobName& name : Value([&](StoreReader& reader) {
           return reader.JobsPastLimit(absl::FromUnixSeconds(seconds), limit);
         })) {
      jobs.push_back(name.job);
    }
    return jobs;
  };
  const auto any = [&] {
    return Value([](StoreReader& reader) { return reader.AnyJobHasLimit(); });
  };
  EXPECT_FALSE(any());
  const auto limited = [](const std::string& job, int64_t seconds) {
    JobRecord record = MakeJob(Name(job));
    if (seconds > 0) record.mutable_limit_time()->set_seconds(seconds);
    return record;
  };
  Write([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(transaction.InsertJob(limited("late", 300)));
    RETURN_IF_ERROR(transaction.InsertJob(limited("early", 100)));
    RETURN_IF_ERROR(transaction.InsertJob(limited("unlimited", 0)));
    return transaction.InsertJob(limited("between", 200));
  });
  EXPECT_TRUE(any());
  EXPECT_THAT(past(99), IsEmpty());
  EXPECT_THAT(past(300), ElementsAre("early", "between", "late"));
  EXPECT_THAT(past(300, 2), ElementsAre("early", "between"));
  Write([&](StoreTransaction& transaction) -> absl::Status {
    RETURN_IF_ERROR(transaction.UpdateJob(limited("early", 0)));
    return transaction.UpdateJob(limited("between", 400));
  });
  EXPECT_THAT(past(300), ElementsAre("late"));
}

TEST_P(JobStoreContract, StalledJobsRunWithoutAnOpenTask) {
  using Job = JobStoreContract::Job;
  Write([&](StoreTransaction& transaction) -> absl::Status {
    const std::vector<std::pair<std::string, Task::State>> jobs = {
        {"queued", Task::QUEUED}, {"leased", Task::LEASED}, {"done", Task::SUCCEEDED}};
    for (const auto& [id, state] : jobs) {
      RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name(id), Job::RUNNING)));
      RETURN_IF_ERROR(transaction.PutTask(MakeTask(Name(id), "old", Task::SUCCEEDED)));
      RETURN_IF_ERROR(transaction.PutTask(MakeTask(Name(id), "new", state)));
    }
    RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name("empty"), Job::RUNNING)));
    RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name("pending"), Job::PENDING)));
    return transaction.InsertJob(MakeJob(Name("over"), Job::FAILED));
  });
  std::vector<std::string> ids;
  for (const JobName& name : Value([](StoreReader& reader) { return reader.StalledJobs(); })) {
    ids.push_back(name.job);
  }
  EXPECT_THAT(ids, ElementsAre("done", "empty"));
}

TEST_P(JobStoreContract, CountsFollowEveryChange) {
  using Job = JobStoreContract::Job;
  Write([&](StoreTransaction& transaction) -> absl::Status {
    for (const char* id : {"a", "b", "c"}) {
      RETURN_IF_ERROR(transaction.InsertJob(MakeJob(Name(id))));
      RETURN_IF_ERROR(transaction.PutTask(MakeTask(Name(id), "t1")));
      RETURN_IF_ERROR(transaction.PutTask(MakeTask(Name(id), "t2")));
    }
    RETURN_IF_ERROR(transaction.UpdateJob(MakeJob(Name("a"), Job::RUNNING)));
    RETURN_IF_ERROR(transaction.UpdateJob(MakeJob(Name("a"), Job::RUNNING)));
    RETURN_IF_ERROR(transaction.PutTask(MakeTask(Name("a"), "t1", Task::LEASED)));
    RETURN_IF_ERROR(transaction.PutTask(MakeTask(Name("a"), "t2", Task::LEASED)));
    RETURN_IF_ERROR(transaction.PutTask(MakeTask(Name("a"), "t2", Task::SUCCEEDED)));
    return transaction.DeleteJob(Name("c"));
  });
  Reopen();
  const StoreCounts counts = Value([](StoreReader& reader) { return reader.Counts(); });
  EXPECT_THAT(counts.jobs, ElementsAre(Pair(Job::PENDING, 1), Pair(Job::RUNNING, 1)));
  EXPECT_THAT(counts.tasks,
              ElementsAre(Pair(Task::QUEUED, 2), Pair(Task::LEASED, 1), Pair(Task::SUCCEEDED, 1)));
}

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_STORE_JOB_STORE_CONTRACT_TEST_H_
