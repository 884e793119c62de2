// What a bench asks of the machine beside times: oneDNN's rate, and the memory of this process.
#ifndef GOLDFINCH_TESTS_BENCH_MACHINE_H_
#define GOLDFINCH_TESTS_BENCH_MACHINE_H_

#include <cstdint>
#include <string>

namespace goldfinch {

// The rate of oneDNN's product of the shape that pre-fill has most of, [rows, width] times [width, 3.5 width]: of fp32
// numbers, or of u8 by s8.
double OneDnnFlopsPerSecond(int64_t rows, int64_t width, bool quantized);

// A memory figure of this process in bytes, by its name in /proc/self/status. "VmHWM" is the most so far.
int64_t ProcessBytes(const std::string& field);
// Makes the memory in use now the most so far. Returns false where the system cannot do that.
bool ForgetPeakMemory();

}  // namespace goldfinch

#endif  // GOLDFINCH_TESTS_BENCH_MACHINE_H_
