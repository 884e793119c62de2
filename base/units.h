// Numbers as people read them.
#ifndef GOLDFINCH_BASE_UNITS_H_
#define GOLDFINCH_BASE_UNITS_H_

#include <cstdint>
#include <string>

namespace goldfinch {

// "1,234,567".
std::string WithCommas(int64_t number);
// "258 B", "8.4 MB": decimal units.
std::string HumanBytes(int64_t bytes);
// A time in seconds: "3.5 s", "5 min 2 s", "2 h 30 min", "3 d 4 h".
std::string HumanAge(double seconds);

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_UNITS_H_
