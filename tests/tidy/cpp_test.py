#!/usr/bin/env python3
"""What cpp.py finds in C++."""

import unittest

import cpp

SOURCE = """\
#include "a.h"  // struct Comment {
#define MACRO struct Macro {

namespace goldfinch::cuda {
enum class Color : int { kRed };
struct Forward;
template <typename T, int kSize = 3>
struct alignas(16) Pair final : Base<T> {
  struct Nested { int x; };
  int Sum() const {
    return a + b;
  }
  const char* text = "struct InText {";
};
namespace {
class Local {};
class Chain : public TestWithParam<std::unique_ptr<Local> (*)(int)> {
  int x;
};
class Called : public Base<void(int, Local)> {};
}  // namespace
template <typename T>
__global__ void __launch_bounds__(128, 2) Kernel(const T* in,
                                                 T* out) {
  struct InFunction {};
  for (;;) {
  }
}
const Pair<int> kPairs[] = {{1, 2}, {3, 4}};
struct Range Make(int size) { return {size}; }
}  // namespace goldfinch::cuda
extern "C" {
struct Plain {
};
}
"""


class CppTest(unittest.TestCase):
    def test_types(self):
        self.assertEqual([(found.name, found.line, found.local) for found in cpp.types_of(SOURCE)],
                         [("goldfinch::cuda::Color", 5, False), ("goldfinch::cuda::Pair", 7, False),
                          ("goldfinch::cuda::Local", 16, True), ("goldfinch::cuda::Chain", 17, True),
                          ("goldfinch::cuda::Called", 20, True), ("Plain", 33, False)])

    def test_functions(self):
        self.assertEqual([(found.name, found.line, found.lines) for found in cpp.functions_of(SOURCE)],
                         [("Sum", 10, 3), ("Kernel", 22, 7), ("Make", 30, 1)])


if __name__ == "__main__":
    unittest.main()
