// Runs a test on every device of the machine: the CPU always, GPUs where there are any.
//
//   class FooTest : public OnDevice {};
//   QPRUNER_ON_EVERY_DEVICE(FooTest);
//   TEST_P(FooTest, ..) { .. device() .. }
//
// Each run prints which devices it found.
#ifndef QPRUNER_WORKER_ENGINE_TESTING_DEVICE_FIXTURE_H_
#define QPRUNER_WORKER_ENGINE_TESTING_DEVICE_FIXTURE_H_

#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <iostream>
#include <string>
#include <vector>

#include "worker/engine/model/devices.h"

namespace qpruner::engine {

class OnDevice : public ::testing::TestWithParam<at::Device> {
 protected:
  at::Device device() const { return GetParam(); }
};

inline std::vector<at::Device> AnnouncedDevices() {
  const std::vector<at::Device> devices = PresentDevices();
  std::cerr << "devices:";
  for (const at::Device& device : devices) std::cerr << " " << device.str();
  std::cerr << "\n";
  return devices;
}

// "cpu", "cuda_0": as gtest wants names.
inline std::string DeviceTestName(const ::testing::TestParamInfo<at::Device>& info) {
  std::string name = info.param.str();
  for (char& c : name) {
    if (c == ':') c = '_';
  }
  return name;
}

}  // namespace qpruner::engine

#define QPRUNER_ON_EVERY_DEVICE(fixture)                                               \
  INSTANTIATE_TEST_SUITE_P(Devices, fixture,                                           \
                           ::testing::ValuesIn(::qpruner::engine::AnnouncedDevices()), \
                           ::qpruner::engine::DeviceTestName)

#endif  // QPRUNER_WORKER_ENGINE_TESTING_DEVICE_FIXTURE_H_
