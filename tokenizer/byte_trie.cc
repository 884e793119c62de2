#include "tokenizer/byte_trie.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <deque>
#include <optional>
#include <utility>

#include "base/check.h"

namespace goldfinch {
namespace {

// With the World vocabulary, 2 open blocks leave 9 % of the cells empty; 16 leave 7 % and take six times as long.
constexpr size_t kOpenBlocksMax = 2;

// A set of the values 0..255.
using ByteSet = std::array<uint64_t, 4>;

void Insert(uint8_t value, ByteSet* set) { (*set)[value / 64] |= uint64_t{1} << (value % 64); }

// {value ^ label : value in set}
ByteSet XorEach(const ByteSet& set, uint8_t label) {
  constexpr uint64_t kEvenGroups[] = {0x5555555555555555, 0x3333333333333333, 0x0f0f0f0f0f0f0f0f,
                                      0x00ff00ff00ff00ff, 0x0000ffff0000ffff, 0x00000000ffffffff};
  ByteSet result;
  for (int i = 0; i < 4; ++i) {
    uint64_t word = set[i ^ (label / 64)];
    for (int bit = 0; bit < 6; ++bit) {
      if (((label >> bit) & 1) == 0) continue;
      const int shift = 1 << bit;
      word = ((word >> shift) & kEvenGroups[bit]) | ((word & kEvenGroups[bit]) << shift);
    }
    result[i] = word;
  }
  return result;
}

// A block of 256 cells that can still take children.
struct Block {
  uint32_t begin;
  ByteSet cells_taken = {};
  ByteSet bases_taken = {};  // The values of `children` in use, minus `begin`.
};

// The first base at which all of `labels` find a free cell in `block`.
std::optional<uint8_t> FindBase(const Block& block, const std::vector<uint8_t>& labels) {
  ByteSet unfit = block.bases_taken;
  for (const uint8_t label : labels) {
    const ByteSet taken = XorEach(block.cells_taken, label);
    for (int i = 0; i < 4; ++i) unfit[i] |= taken[i];
  }
  for (int i = 0; i < 4; ++i) {
    if (~unfit[i] != 0) return static_cast<uint8_t>(i * 64 + std::countr_one(unfit[i]));
  }
  return std::nullopt;
}

}  // namespace

ByteTrie::ByteTrie(std::vector<Entry> entries) {
  std::sort(entries.begin(), entries.end(), [](const Entry& a, const Entry& b) { return a.text < b.text; });
  cells_.resize(kRootChildren);
  std::deque<Block> open;  // The newest at the back.

  // Finds room for children over `labels`, in a new block if need be, and returns the `children` of their parent.
  const auto place = [&](const std::vector<uint8_t>& labels) {
    std::optional<uint8_t> base;
    auto block = open.begin();
    while (block != open.end() && !(base = FindBase(*block, labels))) ++block;
    if (!base) {
      if (open.size() == kOpenBlocksMax) open.pop_front();
      block = open.insert(open.end(), Block{.begin = static_cast<uint32_t>(cells_.size())});
      cells_.resize(cells_.size() + kBlockCells);
      base = 0;
    }
    Insert(*base, &block->bases_taken);
    for (const uint8_t label : labels) Insert(*base ^ label, &block->cells_taken);
    return block->begin + *base;
  };

  // Entries [begin, end) share their first `depth` bytes: they are a node with children.
  struct Node {
    size_t begin;
    size_t end;
    size_t depth;
    uint32_t cell;
  };
  std::vector<Node> stack = {{0, entries.size(), 0, 0}};
  std::vector<uint8_t> labels;
  while (!stack.empty()) {
    const Node node = stack.back();
    stack.pop_back();

    labels.clear();
    for (size_t i = node.begin; i < node.end; ++i) {
      GF_CHECK_GT(entries[i].text.size(), node.depth) << "a text is empty or occurs twice";
      const auto label = static_cast<uint8_t>(entries[i].text[node.depth]);
      if (labels.empty() || labels.back() != label) labels.push_back(label);
    }
    const uint32_t children = place(labels);
    if (node.depth == 0) {
      GF_CHECK_EQ(children, kRootChildren);
    } else {
      cells_[node.cell].children = children;
    }

    size_t begin = node.begin;
    for (const uint8_t label : labels) {
      const uint32_t cell = children ^ label;
      cells_[cell].label = label;
      size_t end = begin;
      while (end < node.end && static_cast<uint8_t>(entries[end].text[node.depth]) == label) ++end;
      if (entries[begin].text.size() == node.depth + 1) {
        GF_CHECK_NE(entries[begin].id, 0);
        cells_[cell].id = entries[begin++].id;
      }
      if (begin < end) stack.push_back({begin, end, node.depth + 1, cell});
      begin = end;
    }
  }
}

}  // namespace goldfinch
