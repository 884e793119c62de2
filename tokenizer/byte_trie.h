// Longest match over bytes in a trie laid out as a double array.
#ifndef GOLDFINCH_TOKENIZER_BYTE_TRIE_H_
#define GOLDFINCH_TOKENIZER_BYTE_TRIE_H_

#include <cstdint>
#include <string_view>
#include <vector>

namespace goldfinch {

// Immutable after construction and thread-safe.
class ByteTrie {
 public:
  struct Entry {
    std::string_view text;
    uint16_t id;  // Not 0.
  };
  struct Match {
    uint16_t id;      // 0 if no text of the trie begins here.
    const char* end;  // One past the match.
  };

  // The texts must be distinct and not empty. The trie keeps no reference to them.
  explicit ByteTrie(std::vector<Entry> entries);

  // Finds the longest text of the trie that [begin, end) begins with. Requires begin < end.
  Match Longest(const char* begin, const char* end) const {
    Match match = {0, begin};
    uint32_t children = kRootChildren;
    for (const char* p = begin; p != end;) {
      const auto byte = static_cast<uint8_t>(*p);
      const Cell cell = cells_[children ^ byte];
      if (cell.label != byte) break;
      ++p;
      if (cell.id != 0) match = {cell.id, p};
      children = cell.children;
    }
    return match;
  }

 private:
  // The child of a node over byte b is cell `children ^ b` if that cell's label is b. No two nodes share `children`, so
  // the label alone tells whose child a cell is.
  struct alignas(8) Cell {
    uint32_t children = kNoChildren;
    uint16_t label = kNoLabel;
    uint16_t id = 0;
  };
  static constexpr uint16_t kNoLabel = 256;
  // All children of a node lie in one block, because `^ byte` changes only the low 8 bits.
  static constexpr uint32_t kBlockCells = 256;
  // Block 0 stays empty: leaves point there, so a look-up beyond a leaf fails without a test of its own.
  static constexpr uint32_t kNoChildren = 0;
  static constexpr uint32_t kRootChildren = kBlockCells;

  class Builder;

  std::vector<Cell> cells_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_TOKENIZER_BYTE_TRIE_H_
