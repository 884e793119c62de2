#include "worker/checkpoint/scan.h"

#include <zlib.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "worker/checkpoint/checkpoint_test_util.h"

namespace goldfinch {
namespace {

constexpr DType kFloatTypes[] = {DType::kF32, DType::kF16, DType::kBf16};

// Whether the 16 bits, or the upper 16 of 32, are those of NaN or infinity, by the definition of the type.
bool IsNonFinite(uint16_t bits, DType dtype) {
  const int mantissa_bits = dtype == DType::kF16 ? 10 : 7;
  const int exponent_max = dtype == DType::kF16 ? 31 : 255;
  return (bits >> mantissa_bits & exponent_max) == exponent_max;
}

TEST(ScanTest, HasNonFiniteIsRightForEveryPatternInEveryLane) {
  for (DType dtype : kFloatTypes) {
    const size_t element_bytes = SizeOf(dtype);
    for (size_t lane = 0; lane < 8 / element_bytes; ++lane) {
      std::string bytes(8, '\0');
      for (int bits = 0; bits < 65536; ++bits) {
        const auto half = static_cast<uint16_t>(bits);
        std::memcpy(&bytes[lane * element_bytes + element_bytes - 2], &half, 2);
        ASSERT_EQ(HasNonFinite(bytes, dtype), IsNonFinite(half, dtype))
            << Name(dtype) << " " << bits << " lane " << lane;
      }
    }
  }
}

TEST(ScanTest, HasNonFiniteLooksAtEveryElementOfEveryLengthAtAnyAddress) {
  for (DType dtype : kFloatTypes) {
    for (size_t count = 1; count <= 70; ++count) {
      // Shifted by a byte, so that nothing is aligned; the largest finite number everywhere, so that carries would
      // show.
      const float large = dtype == DType::kF16 ? 65504.0f : 3.38e38f;
      const std::string finite = " " + EncodeElements(dtype, std::vector<float>(count, -large));
      EXPECT_FALSE(HasNonFinite({finite.data() + 1, finite.size() - 1}, dtype));
      for (size_t bad = 0; bad < count; ++bad) {
        std::vector<float> values(count, large);
        values[bad] = bad % 2 == 0 ? -INFINITY : NAN;
        const std::string bytes = " " + EncodeElements(dtype, values);
        EXPECT_TRUE(HasNonFinite({bytes.data() + 1, bytes.size() - 1}, dtype)) << count << " " << bad;
      }
    }
  }
}

TEST(ScanTest, IntegersAreFinite) {
  EXPECT_FALSE(HasNonFinite(std::string(64, '\xff'), DType::kI32));
  EXPECT_FALSE(HasNonFinite(std::string(64, '\xff'), DType::kU16));
}

TEST(ScanTest, ResultsDoNotDependOnThreads) {
  // Longer than a block, with a remainder.
  std::string large((9 << 20) + 12345, '\0');
  for (size_t i = 0; i < large.size(); ++i) large[i] = static_cast<char>(i * 2654435761u >> 13 & 0x3f);
  std::string bad = large.substr(0, 1000);
  bad[900] = bad[901] = '\x7f';
  const FilePart parts[] = {{"large", large, DType::kBf16, 1},
                            {"bad", bad, DType::kF16, 1},
                            {"no weights", bad, {}, 1},
                            {"unchecked", bad, DType::kF16, {}},
                            {"empty", "", DType::kF32, 1}};
  std::vector<const FilePart*> all;
  for (const FilePart& part : parts) all.push_back(&part);
  const auto crc = [](const std::string& bytes) {
    return crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size());
  };
  for (int threads : {0, 1, 2, 5}) {
    int64_t last_progress = 0;
    const std::vector<PartScan> scans = ScanParts(all, /*checksums=*/true, threads, [&](int64_t bytes) {
      EXPECT_GE(bytes, last_progress);
      last_progress = bytes;
    });
    EXPECT_EQ(last_progress, static_cast<int64_t>(large.size() + 3 * bad.size()));
    EXPECT_EQ(scans[0].crc32, crc(large));
    EXPECT_EQ(scans[1].crc32, crc(bad));
    EXPECT_FALSE(scans[0].non_finite);
    EXPECT_TRUE(scans[1].non_finite);
    EXPECT_FALSE(scans[2].non_finite);
    EXPECT_TRUE(scans[3].non_finite);
    EXPECT_EQ(scans[4].crc32, 0u);
  }
}

}  // namespace
}  // namespace goldfinch
