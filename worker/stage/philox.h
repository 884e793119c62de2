// Philox4x32-10, the counter-based random number generator of Salmon, Moraes, Dror and Shaw ("Parallel random numbers:
// as easy as 1, 2, 3", 2011). It is a pure function of key and counter: no state is kept, and every machine draws the
// same numbers.
#ifndef GOLDFINCH_WORKER_STAGE_PHILOX_H_
#define GOLDFINCH_WORKER_STAGE_PHILOX_H_

#include <array>
#include <cstdint>

namespace goldfinch {

using PhiloxCounter = std::array<uint32_t, 4>;
using PhiloxKey = std::array<uint32_t, 2>;

// 128 random bits.
constexpr PhiloxCounter Philox(PhiloxCounter counter, PhiloxKey key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(product1 >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(product1),
               static_cast<uint32_t>(product0 >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(product0)};
    key = {key[0] + 0x9E3779B9, key[1] + 0xBB67AE85};
  }
  return counter;
}

// What the numbers are used for. Each purpose has a stream of its own, so that a new purpose changes no draw of others.
enum class PhiloxPurpose : uint32_t { kSampling = 0 };

// A number that is uniform in [0, 1): a multiple of 2^-53.
constexpr double PhiloxUniform(uint64_t seed, uint64_t position, PhiloxPurpose purpose) {
  const PhiloxCounter bits = Philox(
      {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32), static_cast<uint32_t>(purpose), 0},
      {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  return static_cast<double>((uint64_t{bits[0]} << 32 | bits[1]) >> 11) * 0x1p-53;
}

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_STAGE_PHILOX_H_
