// The page of all caches that hold rows of every token: the unit in which they are reserved, shared and counted.
#ifndef GOLDFINCH_BASE_CACHE_PAGE_H_
#define GOLDFINCH_BASE_CACHE_PAGE_H_

#include <cstdint>

namespace goldfinch {

// Positions of one page.
inline constexpr int64_t kCachePageTokens = 64;

// Pages that `tokens` positions of one sequence take; the last one may be partly empty.
constexpr int64_t CachePagesFor(int64_t tokens) { return (tokens + kCachePageTokens - 1) / kCachePageTokens; }

// Pages to reserve for `cache_tokens` positions over `max_sequences` sequences, each of which may leave its last page
// partly empty.
constexpr int64_t CachePagesToReserve(int64_t cache_tokens, int64_t max_sequences) {
  return CachePagesFor(cache_tokens) + max_sequences;
}

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_CACHE_PAGE_H_
