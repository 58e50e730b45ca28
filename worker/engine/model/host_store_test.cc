#include "worker/engine/model/host_store.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace qpruner::engine {
namespace {

TEST(HostStoreTest, KeepsInMemoryUpToItsLimitAndInFilesBeyond) {
  const at::Tensor a = at::arange(100, at::kFloat), b = at::arange(6, at::kDouble).view({2, 3}).t();
  at::Tensor first, second;
  {
    HostStore store(400);
    first = store.Keep(a);
    EXPECT_EQ(store.held_bytes(), 400);
    second = store.Keep(b);
    EXPECT_EQ(store.held_bytes(), 400);  // 48 bytes more would be too many.
    EXPECT_NE(second.const_data_ptr(), b.const_data_ptr());
    first.reset();
    EXPECT_EQ(store.held_bytes(), 0);
    first = store.Keep(a);
  }
  // Both outlive the store.
  EXPECT_TRUE(at::equal(first, a));
  EXPECT_TRUE(at::equal(second, b));
  EXPECT_EQ(second.scalar_type(), at::kDouble);
}

TEST(HostStoreTest, EmptyTensors) {
  HostStore store(0);
  EXPECT_EQ(store.Keep(at::empty({0, 3})).size(1), 3);
}

}  // namespace
}  // namespace qpruner::engine
