#include "worker/stage/philox.h"

#include <cstdint>
#include <limits>

#include "gtest/gtest.h"

namespace goldfinch {
namespace {

// The known answers that the authors publish with Random123 (kat_vectors, philox4x32 with 10 rounds).
static_assert(Philox({0, 0, 0, 0}, {0, 0}) == PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
static_assert(Philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}) ==
              PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
static_assert(Philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}) ==
              PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});

double Uniform(uint64_t seed, uint64_t position) { return PhiloxUniform(seed, position, PhiloxPurpose::kSampling); }

TEST(PhiloxTest, UniformTakesTheHighBitsOfTheFirstTwoWords) {
  EXPECT_EQ(Uniform(0, 0), static_cast<double>(0x6627e8d5e169c58d >> 11) / 9007199254740992.0);
  EXPECT_LT(static_cast<double>(std::numeric_limits<uint64_t>::max() >> 11) * 0x1p-53, 1);
}

TEST(PhiloxTest, EveryBitOfSeedAndPositionCounts) {
  const double base = Uniform(0, 0);
  for (int bit = 0; bit < 64; ++bit) {
    EXPECT_NE(Uniform(uint64_t{1} << bit, 0), base) << bit;
    EXPECT_NE(Uniform(0, uint64_t{1} << bit), base) << bit;
    EXPECT_NE(Uniform(uint64_t{1} << bit, 0), Uniform(0, uint64_t{1} << bit)) << bit;
  }
}

TEST(PhiloxTest, MomentsAreThoseOfTheUniformDistribution) {
  constexpr int kDraws = 100000;
  double mean = 0;
  double square = 0;
  double lagged = 0;  // with the position before
  for (int i = 0; i < kDraws; ++i) {
    const double u = Uniform(7, i);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    mean += u / kDraws;
    square += u * u / kDraws;
    lagged += u * Uniform(7, i + 1) / kDraws;
  }
  EXPECT_NEAR(mean, 1.0 / 2, 0.004);  // four standard deviations, about
  EXPECT_NEAR(square, 1.0 / 3, 0.004);
  EXPECT_NEAR(lagged, 1.0 / 4, 0.004);
}

}  // namespace
}  // namespace goldfinch
