#include "worker/model/time_state.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/checkpoint/checkpoint.h"
#include "worker/checkpoint/checkpoint_test_util.h"

namespace goldfinch {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::vector<WkvLayer> kLayers = {{.layer = 0, .heads = 2, .head_size = 3},
                                       {.layer = 2, .heads = 2, .head_size = 3}};

// Every number is another one; all are exact in 16 bits.
TestTensor State(int layer, float first = 0) {
  TestTensor tensor{"blocks." + std::to_string(layer) + ".att.time_state", DType::kF32, {2, 3, 3}, {}};
  for (int i = 0; i < 18; ++i) tensor.values.push_back(first + static_cast<float>(i));
  return tensor;
}

class TimeStateTest : public testing::Test {
 protected:
  const Checkpoint& File(const std::vector<TestTensor>& tensors) {
    bytes_ = PthBytes(tensors);
    auto file = Checkpoint::OpenBytes(bytes_, "poet.pth");
    EXPECT_TRUE(file.ok()) << file.status();
    file_ = *std::move(file);
    return *file_;
  }
  std::string ErrorOf(const std::vector<TestTensor>& tensors) {
    const auto states = ReadTimeStates(File(tensors), kLayers);
    EXPECT_EQ(states.status().code(), absl::StatusCode::kInvalidArgument) << states.status();
    return std::string(states.status().message());
  }

 private:
  std::string bytes_;
  std::unique_ptr<Checkpoint> file_;
};

// The number at [head, value, key] of the file is the one at [head, key, value] of the state.
TEST_F(TimeStateTest, KeysGoBeforeValues) {
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
    std::vector<TestTensor> tensors = {State(0), State(2, 100)};
    for (TestTensor& tensor : tensors) tensor.dtype = dtype;
    tensors[1].name = "_forward_module." + tensors[1].name;  // what trainers put before names is no part of them
    const auto states = ReadTimeStates(File(tensors), kLayers);
    ASSERT_TRUE(states.ok()) << states.status();
    EXPECT_THAT(*states, ElementsAre(ElementsAre(0, 3, 6, 1, 4, 7, 2, 5, 8, 9, 12, 15, 10, 13, 16, 11, 14, 17),
                                     ElementsAre(100, 103, 106, 101, 104, 107, 102, 105, 108, 109, 112, 115, 110, 113,
                                                 116, 111, 114, 117)));
  }
}

TEST_F(TimeStateTest, WhatDoesNotFitIsNamed) {
  EXPECT_THAT(ErrorOf({State(0)}), HasSubstr("poet.pth: has no blocks.2.att.time_state: it has 1 states, this model "
                                             "needs 2"));
  EXPECT_THAT(ErrorOf({State(0), State(2), State(1)}),
              HasSubstr("holds blocks.1.att.time_state, and this model has WKV states in 2 layers, 0 to 2"));
  EXPECT_THAT(ErrorOf({State(0), State(2), {"emb.weight", DType::kF32, {1, 2}, {1, 2}}}),
              HasSubstr("holds emb.weight, which is no part of a tuned state"));
  TestTensor flat = State(2);
  flat.shape = {2, 9};
  EXPECT_THAT(ErrorOf({State(0), flat}),
              HasSubstr("blocks.2.att.time_state is [2, 9], the WKV state of this model's layer is [2, 3, 3]"));
  TestTensor larger = State(2);
  larger.shape = {2, 3, 4};
  larger.values.resize(24);
  EXPECT_THAT(ErrorOf({State(0), larger}), HasSubstr("blocks.2.att.time_state is [2, 3, 4]"));
}

TEST_F(TimeStateTest, NumbersAreFinite) {
  for (const DType dtype : {DType::kF32, DType::kBf16, DType::kF16}) {
    for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
      TestTensor tensor = State(2);
      tensor.dtype = dtype;
      tensor.values[9 + 3 * 2 + 1] = bad;
      EXPECT_THAT(ErrorOf({State(0), tensor}), AllOf(HasSubstr("poet.pth: blocks.2.att.time_state has "),
                                                     HasSubstr(" at [1, 2, 1], it must be finite")));
    }
  }
}

TEST_F(TimeStateTest, OnlyStatesAreTunedStates) {
  EXPECT_TRUE(HoldsTimeStatesAlone(File({State(0), State(7)})));
  EXPECT_FALSE(HoldsTimeStatesAlone(File({State(0), {"emb.weight", DType::kF32, {1, 2}, {1, 2}}})));
}

}  // namespace
}  // namespace goldfinch
