// A finished job with plausible figures, for tests of what shows jobs to people.
#ifndef QPRUNER_CLIENT_TESTING_EXAMPLE_JOB_H_
#define QPRUNER_CLIENT_TESTING_EXAMPLE_JOB_H_

#include <vector>

#include "qpruner/v1/job.pb.h"

namespace qpruner {

struct ExampleJob {
  v1::CompressionJob job;
  std::vector<v1::Trial> trials;
  v1::ParetoFront front;
  // From PENDING to SUCCEEDED, sequences from 1, one second apart.
  std::vector<v1::JobEvent> events;
};

// "projects/default/jobs/example": 14 trials over a model of 20 groups, 8 of them on the front.
ExampleJob MakeExampleJob();

}  // namespace qpruner

#endif  // QPRUNER_CLIENT_TESTING_EXAMPLE_JOB_H_
