#include "worker/device_speed.h"

#include <memory>

#include "gtest/gtest.h"
#include "kernels/backend.h"

namespace goldfinch {
namespace {

TEST(MeasureDevice, PlausibleAndQuick) {
  const std::unique_ptr<Backend> backend = MakeCpuBackend(/*threads=*/1);
  const auto speed = MeasureDevice(*backend);
  ASSERT_TRUE(speed.ok()) << speed.status();
  EXPECT_GT(speed->flops, 1e6);
  EXPECT_LT(speed->flops, 1e13);
  EXPECT_GT(speed->read_bytes_per_second, 1e6);
  EXPECT_LT(speed->read_bytes_per_second, 1e12);
}

}  // namespace
}  // namespace goldfinch
