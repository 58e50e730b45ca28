// The defaults that proto/qpruner/v1/spec.proto documents, in code: here and nowhere else.
#ifndef QPRUNER_PROTO_SPEC_DEFAULTS_H_
#define QPRUNER_PROTO_SPEC_DEFAULTS_H_

#include "qpruner/v1/spec.pb.h"

namespace qpruner {

// Writes the documented default into every field that was left out; a second time changes nothing.
// What depends on the model (Pruning.last_block) stays unset. The server does it when a job is
// created, the engine when a task arrives, so that one that is driven by hand needs no whole spec.
void FillDefaults(v1::CompressionSpec& spec);

}  // namespace qpruner

#endif  // QPRUNER_PROTO_SPEC_DEFAULTS_H_
