#include "kernels/paged_test_util.h"

#include <algorithm>
#include <limits>

namespace goldfinch {

Paging::Paging(TestRandom& random, int64_t page_tokens, const std::vector<int64_t>& lengths)
    : page_tokens_(page_tokens) {
  for (int64_t length : lengths) pages_ += (length + page_tokens - 1) / page_tokens + 1;
  const std::vector<int32_t> order = random.Permutation(pages_);
  auto next = order.begin();
  for (int64_t length : lengths) {
    const int64_t count = (length + page_tokens - 1) / page_tokens;
    tables_.emplace_back(next, next + count);
    next += count;
  }
}

Values Paging::Scatter(const std::vector<Values>& sequences, int64_t width) const {
  Values pool(pages_ * page_tokens_ * width, std::numeric_limits<double>::quiet_NaN());
  for (size_t sequence = 0; sequence < sequences.size(); ++sequence) {
    const Values& rows = sequences[sequence];
    for (int64_t position = 0; position < static_cast<int64_t>(rows.size()) / width; ++position) {
      const auto from = rows.begin() + position * width;
      std::copy(from, from + width, pool.begin() + Row(static_cast<int>(sequence), position) * width);
    }
  }
  return pool;
}

std::vector<RowSpan> SpansOf(TestRandom& random, const std::vector<TestChunk>& chunks, const Paging& paging) {
  std::vector<int> counts;
  counts.reserve(chunks.size());
  for (const TestChunk& chunk : chunks) counts.push_back(chunk.rows);
  std::vector<RowSpan> spans = MakeSpans(random, counts, static_cast<int>(chunks.size()));
  for (size_t i = 0; i < chunks.size(); ++i) {
    spans[i].position = chunks[i].position;
    spans[i].pages = paging.table(static_cast<int>(i));
    spans[i].kept_pages = spans[i].pages;
  }
  return spans;
}

std::vector<int64_t> Lengths(const std::vector<TestChunk>& chunks) {
  std::vector<int64_t> lengths;
  lengths.reserve(chunks.size());
  for (const TestChunk& chunk : chunks) lengths.push_back(chunk.position + chunk.rows);
  return lengths;
}

int64_t RowCount(const std::vector<TestChunk>& chunks) {
  int64_t rows = 0;
  for (const TestChunk& chunk : chunks) rows += chunk.rows;
  return rows;
}

void WritePages(const Values& rows, const std::vector<RowSpan>& spans, const Paging& paging, int64_t width,
                Values& pool) {
  for (size_t i = 0; i < spans.size(); ++i) {
    for (int row = 0; row < spans[i].row_count; ++row) {
      SetSlot(Slot(rows, spans[i].row_begin + row, width),
              static_cast<int>(paging.Row(static_cast<int>(i), spans[i].position + row)), pool);
    }
  }
}

}  // namespace goldfinch
