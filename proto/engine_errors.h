// Reasons (google.rpc.ErrorInfo) of errors that the engine tells the agent.
#ifndef QPRUNER_PROTO_ENGINE_ERRORS_H_
#define QPRUNER_PROTO_ENGINE_ERRORS_H_

namespace qpruner {

// Memory of the device, or of the host, was not enough. RESOURCE_EXHAUSTED.
inline constexpr char kOutOfMemory[] = "OUT_OF_MEMORY";
// The device failed in another way than by its memory: what the process has on it cannot be used
// any more. The engine ends behind this reply. INTERNAL.
inline constexpr char kDeviceLost[] = "DEVICE_LOST";

}  // namespace qpruner

#endif  // QPRUNER_PROTO_ENGINE_ERRORS_H_
