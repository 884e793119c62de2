// Queues and marks keep the order that they promise, on every device.
#include <cstdint>
#include <memory>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend.h"
#include "kernels/backend_test_util.h"

namespace goldfinch {
namespace {

constexpr int64_t kValues = 3000;
constexpr int64_t kBytes = kValues * static_cast<int64_t>(sizeof(float));

std::vector<float> Floats(float first) {
  std::vector<float> values(kValues);
  for (int64_t i = 0; i < kValues; ++i) values[i] = first + static_cast<float>(i);
  return values;
}

Tensor Rows(const std::shared_ptr<void>& memory) { return {memory.get(), DType::kF32, {kValues}}; }

TEST_P(BackendTest, AMarkIsReachedWhenTheOpsBeforeItAreDone) {
  const auto memory = *device->Allocate(kBytes, "test");
  device->CopyFromHost(Floats(1).data(), Rows(memory));
  const std::shared_ptr<const Mark> mark = device->queue().Record();
  mark->Wait();
  EXPECT_TRUE(mark->reached());
  EXPECT_EQ(device->status(), absl::OkStatus());
  device->queue().Record();  // a mark that is never used
}

// A copy from one tensor to another by a second queue and staging memory, without waiting before the end.
TEST_P(BackendTest, QueuesWaitForEachOther) {
  const auto from = *device->Allocate(kBytes, "test"), to = *device->Allocate(kBytes, "test");
  const auto staging = *device->AllocateStaging(kBytes, "test");
  const std::unique_ptr<Queue> beside = device->MakeQueue();
  for (int round = 0; round < 5; ++round) {
    const float first = static_cast<float>(1000 * round);
    device->CopyFromHost(Floats(first).data(), Rows(from));
    beside->WaitFor(*device->queue().Record());
    beside->Copy(from.get(), staging.get(), kBytes);
    const std::shared_ptr<const Mark> read = beside->Record();
    beside->Copy(staging.get(), to.get(), kBytes);
    const std::shared_ptr<const Mark> written = beside->Record();
    device->queue().WaitFor(*read);
    device->Zero(Rows(from));
    device->queue().WaitFor(*written);
    std::vector<float> values(kValues);
    if (round % 2 == 0) {
      device->CopyToHost(Rows(to), values.data());
    } else {
      written->Wait();
      const auto* staged = static_cast<const float*>(staging.get());
      values.assign(staged, staged + kValues);
    }
    EXPECT_EQ(values, Floats(first)) << "round " << round;
  }
}

TEST_P(BackendTest, QueuesCopyBetweenBackends) {
  const std::unique_ptr<Backend> other = GetParam().make(1);
  const auto from = *device->Allocate(kBytes, "test"), to = *other->Allocate(kBytes, "test");
  device->CopyFromHost(Floats(7).data(), Rows(from));
  const std::shared_ptr<const Mark> mark = device->queue().Record();
  other->queue().WaitFor(*mark);
  other->queue().Copy(from.get(), to.get(), kBytes);
  std::vector<float> values(kValues);
  other->CopyToHost(Rows(to), values.data());
  EXPECT_EQ(values, Floats(7));
}

}  // namespace
}  // namespace goldfinch
