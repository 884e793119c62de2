// Numbers from outside that may be too large for us.
#ifndef GOLDFINCH_BASE_SATURATED_H_
#define GOLDFINCH_BASE_SATURATED_H_

#include <algorithm>
#include <cstdint>
#include <limits>

namespace goldfinch {

// The number, or the largest int64 in place of a larger one: no limit lets that one pass.
constexpr int64_t Saturated(uint64_t number) {
  return static_cast<int64_t>(std::min<uint64_t>(number, std::numeric_limits<int64_t>::max()));
}

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_SATURATED_H_
