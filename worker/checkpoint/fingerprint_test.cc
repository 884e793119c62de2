#include "worker/checkpoint/fingerprint.h"

#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "worker/model/random_model.h"

namespace goldfinch {
namespace {

TEST(Fingerprint, TellsModelsApart) {
  const RandomModelSpec spec{.layers = {"finch_c2", "gold"}};
  const std::string fingerprint = Fingerprint(*OpenTensors(RandomModel(spec)));
  EXPECT_EQ(fingerprint.size(), 16u);
  EXPECT_EQ(fingerprint.find_first_not_of("0123456789abcdef"), std::string::npos);
  EXPECT_EQ(Fingerprint(*OpenTensors(RandomModel(spec))), fingerprint);
  EXPECT_EQ(Fingerprint(*OpenTensors(WithSecondNames(RandomModel(spec)))), fingerprint) << "another naming scheme";
  EXPECT_EQ(Fingerprint(*OpenFileBytes(SafetensorsBytes(RandomModel(spec)))), fingerprint) << "another kind of file";

  std::vector<TestTensor> other = RandomModel(spec);
  for (float& value : other.front().values) value = -value;
  EXPECT_NE(Fingerprint(*OpenTensors(other)), fingerprint);
  // The last value of a tensor that is longer than a sample.
  other = RandomModel(spec);
  ASSERT_GT(other.front().values.size(), 2048u);
  other.front().values.back() += 1;
  EXPECT_NE(Fingerprint(*OpenTensors(other)), fingerprint);
  other = RandomModel(spec);
  other.back().name += "2";
  EXPECT_NE(Fingerprint(*OpenTensors(other)), fingerprint);
  other = RandomModel(spec);
  std::swap(other.front().shape[0], other.front().shape[1]);
  EXPECT_NE(Fingerprint(*OpenTensors(other)), fingerprint);
  other = RandomModel(spec);
  for (TestTensor& tensor : other) tensor.dtype = DType::kF16;
  EXPECT_NE(Fingerprint(*OpenTensors(other)), fingerprint);
}

}  // namespace
}  // namespace goldfinch
