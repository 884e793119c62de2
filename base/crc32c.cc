#include "base/crc32c.h"

#include "isa-l/crc.h"

namespace goldfinch {
namespace {

// Polynomials over GF(2), of degree below 32, as the bits of a CRC: the highest bit is the coefficient of x^0.
constexpr uint32_t kPolynomial = 0x82F63B78;
constexpr uint32_t kOne = uint32_t{1} << 31;

// a * b modulo the polynomial.
constexpr uint32_t Multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = kOne; bit != 0; bit >>= 1) {
    if ((a & bit) != 0) product ^= b;
    b = (b & 1) != 0 ? (b >> 1) ^ kPolynomial : b >> 1;
  }
  return product;
}

}  // namespace

uint32_t Crc32c(std::string_view bytes, uint32_t before) {
  constexpr size_t kBytesOfCall = 1 << 30;  // the library counts in ints
  uint32_t crc = ~before;
  while (!bytes.empty()) {
    const std::string_view part = bytes.substr(0, kBytesOfCall);
    // The library takes a pointer to bytes that it does not write to.
    auto* const data = reinterpret_cast<unsigned char*>(const_cast<char*>(part.data()));  // NOLINT
    crc = crc32_iscsi(data, static_cast<int>(part.size()), crc);
    bytes.remove_prefix(part.size());
  }
  return ~crc;
}

uint32_t JoinCrc32c(uint32_t first, uint32_t second, int64_t second_bytes) {
  // As many zero bytes behind the first run multiply its checksum by x^(8 n).
  uint32_t factor = kOne;
  uint32_t power = kOne >> 8;
  for (uint64_t n = static_cast<uint64_t>(second_bytes); n != 0; n >>= 1) {
    if ((n & 1) != 0) factor = Multiply(factor, power);
    power = Multiply(power, power);
  }
  return Multiply(factor, first) ^ second;
}

}  // namespace goldfinch
