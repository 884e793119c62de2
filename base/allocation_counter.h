// What a test program allocates. Whoever links this gets its `operator new`, for tests that count allocations.
#ifndef GOLDFINCH_BASE_ALLOCATION_COUNTER_H_
#define GOLDFINCH_BASE_ALLOCATION_COUNTER_H_

#include <cstdint>

namespace goldfinch {

// The sums over all threads since the start of the program.
struct Allocations {
  int64_t count = 0;
  int64_t bytes = 0;
};
Allocations CountedAllocations();

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_ALLOCATION_COUNTER_H_
