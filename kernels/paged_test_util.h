// What the tests of ops on paged caches share: page tables, and chunks of several sequences.
#ifndef GOLDFINCH_KERNELS_PAGED_TEST_UTIL_H_
#define GOLDFINCH_KERNELS_PAGED_TEST_UTIL_H_

#include <cstdint>
#include <vector>

#include "kernels/backend_test_util.h"

namespace goldfinch {

// Page tables of several sequences over one pool of pages, in shuffled order, with unused pages between them.
class Paging {
 public:
  Paging(TestRandom& random, int64_t page_tokens, const std::vector<int64_t>& lengths);

  int64_t pages() const { return pages_; }
  int64_t page_tokens() const { return page_tokens_; }
  const int32_t* table(int sequence) const { return tables_[sequence].data(); }
  // Row `position` of a sequence, counted over the whole pool.
  int64_t Row(int sequence, int64_t position) const {
    return tables_[sequence][position / page_tokens_] * page_tokens_ + position % page_tokens_;
  }
  // The pool [pages, page_tokens, width] that holds these sequences, and NaN elsewhere.
  Values Scatter(const std::vector<Values>& sequences, int64_t width) const;

 private:
  int64_t page_tokens_;
  int64_t pages_ = 0;
  std::vector<std::vector<int32_t>> tables_;
};

// Rows of one sequence in a call.
struct TestChunk {
  int64_t position = 0;
  int rows = 1;
};

// How long each sequence is after its chunk.
std::vector<int64_t> Lengths(const std::vector<TestChunk>& chunks);
int64_t RowCount(const std::vector<TestChunk>& chunks);
// MakeSpans of the chunks, chunk i being of sequence i of `paging`, with its page table as `pages` and `kept_pages`.
std::vector<RowSpan> SpansOf(TestRandom& random, const std::vector<TestChunk>& chunks, const Paging& paging);
// Writes rows [rows, width] of a call to the positions of the pool that they belong to.
void WritePages(const Values& rows, const std::vector<RowSpan>& spans, const Paging& paging, int64_t width,
                Values& pool);

}  // namespace goldfinch

#endif  // GOLDFINCH_KERNELS_PAGED_TEST_UTIL_H_
