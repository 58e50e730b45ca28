#include "worker/engine/model/devices.h"

#include <ATen/ATen.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <dlfcn.h>

#include <iostream>

#include "base/machine_memory.h"

namespace qpruner::engine {

int64_t CudaDeviceCount() {
  if (dlopen("libcuda.so.1", RTLD_LAZY) == nullptr) return 0;
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    std::cerr << "There is a CUDA driver, but LibTorch's CUDA part does not load: " << dlerror()
              << "\n";
    return 0;
  }
  return at::detail::getCUDAHooks().deviceCount();
}

std::vector<at::Device> PresentDevices() {
  std::vector<at::Device> devices = {at::Device(at::kCPU)};
  for (int64_t index = 0; index < CudaDeviceCount(); ++index) {
    devices.emplace_back(at::kCUDA, static_cast<at::DeviceIndex>(index));
  }
  return devices;
}

int64_t DeviceMemoryBytes(const at::Device& device) {
  if (device.is_cpu()) return MachineMemory();
  // Of the driver's API, by its documented C signatures: LibTorch has no door to it without its
  // CUDA headers.
  void* driver = dlopen("libcuda.so.1", RTLD_LAZY);
  if (driver == nullptr) return 0;
  const auto get = reinterpret_cast<int (*)(int*, int)>(dlsym(driver, "cuDeviceGet"));
  const auto memory = reinterpret_cast<int (*)(size_t*, int)>(dlsym(driver, "cuDeviceTotalMem_v2"));
  int handle = 0;
  size_t bytes = 0;
  if (get == nullptr || memory == nullptr || get(&handle, device.index()) != 0 ||
      memory(&bytes, handle) != 0) {
    return 0;
  }
  return static_cast<int64_t>(bytes);
}

}  // namespace qpruner::engine
