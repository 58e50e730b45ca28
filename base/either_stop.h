// One stop token for two reasons to stop.
#ifndef QPRUNER_BASE_EITHER_STOP_H_
#define QPRUNER_BASE_EITHER_STOP_H_

#include <stop_token>
#include <utility>

namespace qpruner {

// Its token is stopped as soon as either of two is, as long as this lives.
class EitherStop {
 public:
  EitherStop(std::stop_token first, std::stop_token second)
      : first_(std::move(first), Relay{source_}), second_(std::move(second), Relay{source_}) {}
  EitherStop(const EitherStop&) = delete;
  EitherStop& operator=(const EitherStop&) = delete;

  std::stop_token token() const { return source_.get_token(); }

 private:
  struct Relay {
    std::stop_source source;
    void operator()() { source.request_stop(); }
  };

  std::stop_source source_;
  std::stop_callback<Relay> first_;
  std::stop_callback<Relay> second_;
};

}  // namespace qpruner

#endif  // QPRUNER_BASE_EITHER_STOP_H_
