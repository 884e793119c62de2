// CRC-32C (Castagnoli): the checksum of what is kept on disk.
#ifndef GOLDFINCH_BASE_CRC32C_H_
#define GOLDFINCH_BASE_CRC32C_H_

#include <cstdint>
#include <string_view>

namespace goldfinch {

// The checksum of the bytes that have the checksum `before`, followed by `bytes`; 0 is the checksum of no bytes.
uint32_t Crc32c(std::string_view bytes, uint32_t before = 0);

// The checksum of two runs of bytes, one behind the other, from the checksum of each and the length of the second.
uint32_t JoinCrc32c(uint32_t first, uint32_t second, int64_t second_bytes);

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_CRC32C_H_
