#include "worker/engine/model/devices.h"

#include <ATen/ATen.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <dlfcn.h>

#include <iostream>

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

}  // namespace qpruner::engine
