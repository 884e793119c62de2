// Submissions on CUDA (Backend::Submit): whether run once, run again, captured or replayed, they compute what their ops
// compute alone. Runs over the emulation, and over a device if there is one.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/backend_test_util.h"
#include "kernels/cuda/cuda_backend.h"

namespace goldfinch {
namespace {

constexpr int64_t kVocab = 50;
constexpr int64_t kWidth = 64;
constexpr int kHeadSize = 16;
constexpr int64_t kPageTokens = 4;
constexpr int64_t kPages = 40;

// Changes host arrays as decoding does: ids, positions and page tables differ from step to step.
class Decoder {
 public:
  Decoder(std::unique_ptr<Backend> backend, int sequences)
      : device_(std::move(backend)), random_(7), sequences_(sequences), tables_(sequences) {
    const auto normal = [&](const Shape& shape, double scale) {
      return device_.Put(random_.Normal(shape.elements(), scale, DType::kBf16), shape, DType::kBf16);
    };
    embedding_ = normal({kVocab, kWidth}, 1);
    weight_ = {normal({kWidth, kWidth}, 0.1)};
    cache_ = {normal({kPages, kPageTokens, kWidth}, 1), normal({kPages, kPageTokens, kWidth}, 1)};
    shift_ = device_.Put(Values(sequences * kWidth, 0), {sequences, kWidth});
    mix_ = device_.Put(Values(kWidth, 0.5), {1, kWidth});
    x_ = device_.New({sequences, kWidth});
    rows_ = device_.New(DType::kBf16, {sequences, kWidth});
    shifted_ = device_.New(DType::kBf16, {1, sequences, kWidth});
    MoveOutput();
  }

  Backend& backend() { return *device_; }
  CudaCounters counters() { return CountersOf(*device_); }
  void MoveOutput() { out_ = device_.New(DType::kBf16, {sequences_, kWidth}); }

  // The next position of every sequence.
  void Ops() {
    device_->Embed(embedding_, ids_, x_);
    device_->Convert(x_, rows_);
    device_->MatMul(rows_, weight_, {.activation = Activation::kSilu}, out_);
    device_->TokenShift(out_, spans_, shift_, mix_, shifted_);
    device_->Copy(Slice(shifted_, 0), rows_);
    device_->Rope(rows_, spans_, kHeadSize, 1e4);
    device_->KvAppend(rows_, rows_, spans_, cache_);
    device_->Zero(out_);
    device_->KvAttention(rows_, spans_, cache_, kHeadSize, out_);
    copies_.assign(1, {sequences_ - 1, position_ % sequences_});
    device_->CopyRows(x_, copies_, out_);
    copies_.assign(1, {0, (position_ + 1) % sequences_});
    device_->CopyRows(x_, copies_, out_);
  }
  void Plan() {
    ids_.clear();
    spans_.clear();
    for (int i = 0; i < sequences_; ++i) {
      std::vector<int32_t>& table = tables_[i];
      if (position_ % kPageTokens == 0) table.push_back(next_page_++ * 17 % static_cast<int32_t>(kPages));
      ids_.push_back(static_cast<int32_t>((position_ * 7 + i * 3) % kVocab));
      spans_.push_back({.slot = i, .row_begin = i, .row_count = 1, .position = position_, .pages = table.data()});
    }
  }
  Values Done() {
    ++position_;
    return device_.Get(out_);
  }

 private:
  Device device_;
  TestRandom random_;
  const int sequences_;
  std::vector<std::vector<int32_t>> tables_;
  int32_t next_page_ = 0;
  int64_t position_ = 0;
  std::vector<int32_t> ids_;
  std::vector<RowSpan> spans_;
  std::vector<RowCopy> copies_;
  Tensor embedding_, shift_, mix_, x_, rows_, shifted_, out_;
  Matrix weight_;
  KvCache cache_;
};

class SubmissionsTest : public testing::Test {
 protected:
  void SetUp() override {
    const auto backend = MakeCudaBackend({});
    if (!backend.ok()) GTEST_SKIP() << "no test of submissions on a device: " << backend.status().message();
  }
  static std::unique_ptr<Backend> Make() { return *MakeCudaBackend({.activation_dtype = DType::kBf16}); }
  static Values Alone(Decoder& decoder) {
    decoder.Plan();
    decoder.Ops();
    return decoder.Done();
  }
  static Values Step(Decoder& decoder, bool repeats) {
    decoder.Plan();
    decoder.backend().Submit(repeats, [&] { decoder.Ops(); });
    return decoder.Done();
  }
};

// Nine rows, so that products go to the library.
TEST_F(SubmissionsTest, ComputeWhatTheirOpsDo) {
  for (const int sequences : {1, 9}) {
    Decoder alone(Make(), sequences), once(Make(), sequences), repeated(Make(), sequences);
    for (int i = 0; i < 14; ++i) {
      const Values expected = Alone(alone);
      ExpectSame(Step(once, false), expected, "a submission");
      ExpectSame(Step(repeated, true), expected, "a submission that repeats");
    }
    EXPECT_EQ(once.counters().graph_launches, 0);
    EXPECT_EQ(repeated.counters().captures, 1);
    EXPECT_EQ(repeated.counters().graph_launches, 13);
  }
}

TEST_F(SubmissionsTest, AreOneCopyAndOneLaunchOnceTheyRepeat) {
  Decoder decoder(Make(), 3);
  Step(decoder, true);
  EXPECT_GT(decoder.counters().launches, 10);
  EXPECT_EQ(decoder.counters().uploads, 1);
  for (int i = 0; i < 10; ++i) {
    const CudaCounters before = decoder.counters();
    Step(decoder, true);
    const CudaCounters after = decoder.counters();
    EXPECT_EQ(after.launches, before.launches);
    EXPECT_EQ(after.uploads, before.uploads + 1);
    EXPECT_EQ(after.graph_launches, before.graph_launches + 1);
  }
}

TEST_F(SubmissionsTest, AnotherAddressIsAnotherSubmission) {
  Decoder alone(Make(), 2), repeated(Make(), 2);
  for (int round = 0; round < 3; ++round) {
    for (int i = 0; i < 4; ++i) ExpectSame(Step(repeated, true), Alone(alone), "after a move");
    EXPECT_EQ(repeated.counters().captures, round + 1);
    repeated.MoveOutput();
    alone.MoveOutput();
  }
}

TEST_F(SubmissionsTest, TheOldestAreForgotten) {
  Device device(Make());
  constexpr int kSteps = 100;  // more than Context keeps
  const Tensor tensor = device.New({kSteps});
  const auto zero = [&](int count) {
    device->Submit(true, [&] { device->Zero({tensor.data, DType::kF32, {count}}); });
  };
  for (int i = 1; i <= kSteps; ++i) {
    zero(i);
    zero(i);
    EXPECT_EQ(CountersOf(*device).captures, i);
  }
  zero(kSteps);
  EXPECT_EQ(CountersOf(*device).captures, kSteps);
  EXPECT_EQ(CountersOf(*device).graph_launches, kSteps + 1);
  zero(1);
  EXPECT_EQ(CountersOf(*device).graph_launches, kSteps + 1) << "seen first again";
  zero(1);
  EXPECT_EQ(CountersOf(*device).captures, kSteps + 1);
}

// Page tables of megabytes, several in one submission.
TEST_F(SubmissionsTest, ArraysOfAnySize) {
  Device device(Make());
  TestRandom random(3);
  constexpr int64_t kTablePages = 300'000;
  const Tensor keys = device.Put(Values(2 * kWidth, 0), {2, 1, kWidth}, DType::kBf16);
  const KvCache cache{keys, device.Put(Values(2 * kWidth, 0), {2, 1, kWidth}, DType::kBf16)};
  const Values values = random.Normal(kWidth, 1, DType::kBf16);
  const Tensor row = device.Put(values, {1, kWidth}, DType::kBf16);
  std::vector<std::vector<int32_t>> tables(2, std::vector<int32_t>(kTablePages));
  tables[0].back() = 1;
  for (int i = 0; i < 4; ++i) {
    device->Zero(keys);
    device->Submit(true, [&] {
      for (const std::vector<int32_t>& table : tables) {
        const RowSpan span{.row_count = 1, .position = kTablePages - 1, .pages = table.data()};
        device->KvAppend(row, row, {&span, 1}, cache);
      }
    });
    Values expected = values;
    expected.insert(expected.end(), values.begin(), values.end());
    ExpectSame(device.Get(keys), expected, "both pages");
  }
  EXPECT_GE(CountersOf(*device).graph_launches, 1);
}

using SubmissionsDeathTest = SubmissionsTest;

TEST_F(SubmissionsDeathTest, WhatASubmissionMustNotDo) {
  Device device(Make());
  const Tensor tensor = device.New({4});
  float host[4] = {};
  EXPECT_DEATH(device->Submit(false, [&] { device->Submit(false, [] {}); }), "a submission within a submission");
  EXPECT_DEATH(device->Submit(false, [&] { device->CopyToHost(tensor, host); }),
               "a copy to the host within a submission");
  EXPECT_DEATH(device->Submit(false, [&] { device->CopyFromHost(host, tensor); }), "a copy from the host within");
  EXPECT_DEATH(device->Submit(false, [&] { (void)device->Synchronize(); }), "a wait within a submission");
  const Tensor rows = device.New({2, 4});
  const Tensor table = device.Put(Values(8, 0), {2, 4});
  int calls = 0;
  const std::vector<int32_t> ids = {0, 1};
  const auto differs = [&] {
    ++calls;
    device->Embed(table, absl::MakeConstSpan(ids).first(calls), {rows.data, DType::kF32, {calls, 4}});
  };
  EXPECT_DEATH(device->Submit(true, differs), "differ from call to call");
}

}  // namespace
}  // namespace goldfinch
