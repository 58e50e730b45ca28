// The devices that LibTorch finds on this machine, and their memory.
#ifndef QPRUNER_WORKER_ENGINE_MODEL_DEVICES_H_
#define QPRUNER_WORKER_ENGINE_MODEL_DEVICES_H_

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace qpruner::engine {

// GPUs that LibTorch finds. Its CUDA part is not linked: it is loaded here where there is a driver;
// if it does not load, standard error says why.
int64_t CudaDeviceCount();

// What the device has; for the CPU, what this process may count on (base/machine_memory.h). 0:
// unknown.
int64_t DeviceMemoryBytes(const at::Device& device);

// The CPU, then every GPU.
std::vector<at::Device> PresentDevices();

}  // namespace qpruner::engine

#endif  // QPRUNER_WORKER_ENGINE_MODEL_DEVICES_H_
