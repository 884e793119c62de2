#include "worker/checkpoint/scan.h"

#include <zlib.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

#include "base/mapped_file.h"

namespace goldfinch {
namespace {

// An element is not finite when all bits of its exponent are 1. Adding the exponent's lowest bit then carries into the
// sign's place, which the mask has cleared, and never further: so a 64-bit word tests two or four elements at once.
struct ExponentBits {
  uint64_t mask;
  uint64_t lowest;
  uint64_t sign;
};

constexpr ExponentBits BitsOf(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return {0x7f800000'7f800000, 0x00800000'00800000, 0x80000000'80000000};
    case DType::kF16:
      return {0x7c007c00'7c007c00, 0x04000400'04000400, 0x80008000'80008000};
    case DType::kBf16:
      return {0x7f807f80'7f807f80, 0x00800080'00800080, 0x80008000'80008000};
    default:
      return {};  // integers are finite
  }
}

// Blocks are shared out among threads; steps stay in the processor's cache between checksum and test.
constexpr size_t kBlockBytes = 8 << 20;
constexpr size_t kStepBytes = 64 << 10;

struct Block {
  int part = 0;
  std::string_view bytes;
  PartScan result;
};

void ScanBlock(const FilePart& part, bool checksums, Block* block) {
  MappedFile::WillNeed(block->bytes);
  const bool checksum = checksums && part.crc32.has_value();
  for (size_t begin = 0; begin < block->bytes.size(); begin += kStepBytes) {
    const std::string_view step = block->bytes.substr(begin, kStepBytes);
    if (checksum) {
      block->result.crc32 = crc32_z(block->result.crc32, reinterpret_cast<const Bytef*>(step.data()), step.size());
    }
    if (part.dtype && HasNonFinite(step, *part.dtype)) block->result.non_finite = true;
  }
}

}  // namespace

bool HasNonFinite(std::string_view bytes, DType dtype) {
  constexpr size_t kWords = 8;  // a fixed inner loop, so that compilers use vectors
  const ExponentBits bits = BitsOf(dtype);
  uint64_t found[kWords] = {};
  uint64_t words[kWords];
  const size_t whole_bytes = bytes.size() - bytes.size() % SizeOf(dtype);
  for (size_t begin = 0; begin < whole_bytes; begin += sizeof(words)) {
    const size_t count = std::min(sizeof(words), whole_bytes - begin);
    if (count < sizeof(words)) std::memset(words, 0, sizeof(words));
    std::memcpy(words, bytes.data() + begin, count);
    for (size_t i = 0; i < kWords; ++i) found[i] |= (words[i] & bits.mask) + bits.lowest;
  }
  uint64_t any = 0;
  for (uint64_t word : found) any |= word;
  return (any & bits.sign) != 0;
}

std::vector<PartScan> ScanParts(const std::vector<const FilePart*>& parts, bool checksums, int threads,
                                const std::function<void(int64_t bytes)>& progress) {
  std::vector<Block> blocks;
  for (size_t part = 0; part < parts.size(); ++part) {
    const std::string_view bytes = parts[part]->bytes;
    for (size_t begin = 0; begin < bytes.size(); begin += kBlockBytes) {
      blocks.push_back({static_cast<int>(part), bytes.substr(begin, kBlockBytes), {}});
    }
  }

  std::atomic<size_t> next = 0;
  std::atomic<int64_t> bytes_read = 0;
  const auto work = [&](bool report) {
    for (size_t i = next++; i < blocks.size(); i = next++) {
      ScanBlock(*parts[blocks[i].part], checksums, &blocks[i]);
      bytes_read += static_cast<int64_t>(blocks[i].bytes.size());
      if (report && progress) progress(bytes_read);
    }
  };
  const int helpers = static_cast<int>(std::min<size_t>(std::max(threads, 1), blocks.size())) - 1;
  std::vector<std::thread> pool;
  pool.reserve(std::max(helpers, 0));
  for (int i = 0; i < helpers; ++i) pool.emplace_back(work, false);
  work(true);
  for (std::thread& thread : pool) thread.join();
  if (progress) progress(bytes_read);

  std::vector<PartScan> results(parts.size());
  for (const Block& block : blocks) {
    PartScan& result = results[block.part];
    result.non_finite = result.non_finite || block.result.non_finite;
    result.crc32 = crc32_combine(result.crc32, block.result.crc32, static_cast<z_off_t>(block.bytes.size()));
  }
  return results;
}

}  // namespace goldfinch
