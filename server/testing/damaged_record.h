// Records as a store holds them after damage: they can be written and not be read again.
#ifndef QPRUNER_SERVER_TESTING_DAMAGED_RECORD_H_
#define QPRUNER_SERVER_TESTING_DAMAGED_RECORD_H_

#include "google/protobuf/message.h"
#include "google/protobuf/unknown_field_set.h"

namespace qpruner::server {

// Nests unknown groups more deeply than any parser of protobuf follows.
template <typename Message>
void MakeUnreadable(Message& record) {
  constexpr int kTooDeep = 200;
  google::protobuf::UnknownFieldSet* fields = record.GetReflection()->MutableUnknownFields(&record);
  for (int depth = 0; depth < kTooDeep; ++depth) fields = fields->AddGroup(1000);
}

}  // namespace qpruner::server

#endif  // QPRUNER_SERVER_TESTING_DAMAGED_RECORD_H_
