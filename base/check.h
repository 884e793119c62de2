// CHECK macros, for the programmer's errors. The world's errors (files, requests, flags, devices) are absl::Status.
//
// A failed CHECK prints file, line, condition and message to stderr and aborts.
#ifndef GOLDFINCH_BASE_CHECK_H_
#define GOLDFINCH_BASE_CHECK_H_

#include <sstream>

namespace goldfinch::internal {

class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const char* condition);
  [[noreturn]] ~CheckFailure();
  std::ostream& stream() { return stream_; }

 private:
  std::ostringstream stream_;
};

}  // namespace goldfinch::internal

#define GF_CHECK(condition)                        \
  if (__builtin_expect(!!(condition), 1)) {        \
  } else /* NOLINT(readability-misleading-else) */ \
    ::goldfinch::internal::CheckFailure(__FILE__, __LINE__, #condition).stream()

#define GF_CHECK_OP(a, op, b) GF_CHECK((a)op(b)) << "(" << (a) << " vs " << (b) << ") "
#define GF_CHECK_EQ(a, b) GF_CHECK_OP(a, ==, b)
#define GF_CHECK_NE(a, b) GF_CHECK_OP(a, !=, b)
#define GF_CHECK_LE(a, b) GF_CHECK_OP(a, <=, b)
#define GF_CHECK_LT(a, b) GF_CHECK_OP(a, <, b)
#define GF_CHECK_GE(a, b) GF_CHECK_OP(a, >=, b)
#define GF_CHECK_GT(a, b) GF_CHECK_OP(a, >, b)

#endif  // GOLDFINCH_BASE_CHECK_H_
