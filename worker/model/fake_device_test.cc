#include "worker/model/fake_device.h"

#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

class FakeDeviceTest : public testing::Test {
 public:
  Tensor Take(const Shape& shape, DType dtype) {
    Tensor tensor{nullptr, dtype, shape};
    memory.push_back(*device.Allocate(tensor.bytes(), "test"));
    tensor.data = memory.back().get();
    return tensor;
  }
  Tensor Put(const std::vector<float>& values) {
    const Tensor tensor = Take({1, static_cast<int64_t>(values.size())}, DType::kF32);
    device.CopyFromHost(values.data(), tensor);
    return tensor;
  }

  std::vector<std::shared_ptr<void>> memory;
  const std::unique_ptr<Backend> cpu = MakeCpuBackend(/*threads=*/1);
  FakeDevice device{*cpu, DType::kBf16};
};

TEST_F(FakeDeviceTest, NewMemoryIsZeroedWhoeverHadItBefore) {
  for (int i = 0; i < 3; ++i) {
    const Tensor tensor = Take({100}, DType::kF32);
    std::vector<float> values(100, 1);
    device.CopyToHost(tensor, values.data());
    EXPECT_EQ(values, std::vector<float>(100));
    values.assign(100, 2);
    device.CopyFromHost(values.data(), tensor);
    memory.clear();
  }
}

TEST_F(FakeDeviceTest, OpsReadAndWriteActivations) {
  const Tensor narrow = Take({1, 3}, DType::kBf16), wide = Take({1, 3}, DType::kF32);
  const RowCopy row{0, 0};
  device.CopyRows(Put({1, 1 + 1.0f / 512, -3}), {&row, 1}, narrow);
  device.CopyRows(narrow, {&row, 1}, wide);
  std::vector<float> values(3);
  device.CopyToHost(wide, values.data());
  EXPECT_EQ(values, (std::vector<float>{1, 1, -3})) << "rounded to bf16";
}

using FakeDeviceDeathTest = FakeDeviceTest;

TEST_F(FakeDeviceDeathTest, TheHostCannotTouchItsMemory) {
  const Tensor tensor = Put({1, 2});
  EXPECT_DEATH(*static_cast<volatile float*>(tensor.data) = 1, "");
  EXPECT_DEATH(static_cast<void>(*static_cast<volatile float*>(tensor.data)), "");
}

TEST_F(FakeDeviceDeathTest, OpsCannotTouchTheHostsMemory) {
  float host[2] = {1, 2};
  const Tensor inside = Put({1, 2}), outside{host, DType::kF32, {1, 2}};
  EXPECT_DEATH(device.Copy(inside, outside), "outside the device's memory");
  EXPECT_DEATH(device.Zero(outside), "outside the device's memory");
  EXPECT_DEATH(device.CopyToHost(inside, inside.data), "not the host's memory");
  EXPECT_DEATH(device.CopyFromHost(inside.data, inside), "not the host's memory");
}

TEST_F(FakeDeviceDeathTest, TypesThatTheContractDoesNotAllow) {
  const Tensor floats = Put(std::vector<float>(16)), halves = Take({1, 16}, DType::kF16);
  const RowSpan span{.slot = 0, .row_begin = 0, .row_count = 1};
  EXPECT_DEATH(device.Rope(floats, {&span, 1}, 16, 1e4), "rows to rotate");
  EXPECT_DEATH(device.Convert(halves, floats), "conversion input");
}

TEST(FakeDeviceQueueTest, MarksCanBeHeldAndTheDeviceCanFail) {
  FakeDevice device(MakeCpuBackend(1));
  EXPECT_TRUE(device.queue().Record()->reached());
  device.HoldMarks(true);
  const std::shared_ptr<const Mark> mark = device.queue().Record();
  EXPECT_FALSE(mark->reached());
  device.HoldMarks(false);
  EXPECT_TRUE(mark->reached());
  mark->Wait();
  EXPECT_EQ(device.status(), absl::OkStatus());
  device.Fail(absl::InternalError("lost"));
  EXPECT_EQ(device.status().message(), "lost");
  EXPECT_FALSE(device.Synchronize().ok());
}

// From one device to another and by the host, at addresses that mean something to their own ops alone.
TEST(FakeDeviceQueueTest, QueuesCopyBetweenDevicesAndStagingMemory) {
  FakeDevice one(MakeCpuBackend(1)), other(MakeCpuBackend(1));
  const std::vector<float> values = {1, 2, 3};
  const auto from = *one.Allocate(12, "test"), to = *other.Allocate(12, "test");
  const auto staging = *one.AllocateStaging(12, "test");
  one.CopyFromHost(values.data(), {from.get(), DType::kF32, {3}});
  other.queue().WaitFor(*one.queue().Record());
  other.MakeQueue()->Copy(from.get(), to.get(), 12);
  other.queue().Copy(to.get(), staging.get(), 12);
  const auto* staged = static_cast<const float*>(staging.get());
  EXPECT_EQ(std::vector<float>(staged, staged + 3), values);
}

}  // namespace
}  // namespace goldfinch
