// A job for the shipped model, and a real engine, that takes seconds.
#ifndef QPRUNER_TESTS_TESTING_SMALL_JOB_H_
#define QPRUNER_TESTS_TESTING_SMALL_JOB_H_

#include "qpruner/v1/job.pb.h"

namespace qpruner {

inline v1::CompressionJob SmallJob() {
  v1::CompressionJob job;
  v1::CompressionSpec& spec = *job.mutable_spec();
  spec.mutable_model()->set_uri("builtin://stories260k");
  spec.mutable_calibration()->set_sample_count(16);
  spec.mutable_calibration()->set_sequence_length(64);
  spec.mutable_pruning()->set_ratio(0.25);
  spec.mutable_search()->set_max_average_bits(6);
  spec.mutable_search()->set_max_trials(8);
  spec.mutable_search()->set_granularity(v1::Search::BLOCK);
  spec.mutable_fine_tune()->set_steps(10);
  spec.mutable_fine_tune()->set_warmup_steps(2);
  spec.mutable_fine_tune()->set_batch_size(4);
  spec.mutable_fine_tune()->set_sequence_length(64);
  spec.mutable_evaluation()->set_max_selection_tokens(2048);
  spec.mutable_evaluation()->set_max_test_tokens(2048);
  return job;
}

// The same with fine-tuning long enough that the engine is still at it when word of its first
// checkpoint arrives.
inline v1::CompressionJob JobWithLongFineTuning() {
  v1::CompressionJob job = SmallJob();
  v1::FineTune& tune = *job.mutable_spec()->mutable_fine_tune();
  tune.set_steps(60);
  tune.set_checkpoint_every(10);
  tune.set_evaluate_every(5);
  tune.set_batch_size(16);
  tune.set_sequence_length(256);
  return job;
}

// The same with GPTQ in so many formats, over so much text, that the engine is still preparing when
// word of its first blocks arrives.
inline v1::CompressionJob JobWithLongPreparation() {
  v1::CompressionJob job = SmallJob();
  v1::CompressionSpec& spec = *job.mutable_spec();
  spec.mutable_calibration()->set_sample_count(128);
  spec.mutable_calibration()->set_sequence_length(256);
  for (const int bits : {2, 3, 4, 5, 6, 7, 8, 16}) spec.mutable_search()->add_candidate_bits(bits);
  spec.mutable_search()->set_max_trials(10);
  spec.mutable_quantization()->set_four_bit(v1::Quantization::INT4_GROUP);
  spec.mutable_quantization()->set_eight_bit(v1::Quantization::INT8_GROUP);
  spec.mutable_quantization()->set_group_size(32);
  spec.mutable_quantization()->set_method(v1::Quantization::GPTQ);
  return job;
}

}  // namespace qpruner

#endif  // QPRUNER_TESTS_TESTING_SMALL_JOB_H_
