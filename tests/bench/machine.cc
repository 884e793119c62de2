#include "tests/bench/machine.h"

#include <fstream>
#include <string>
#include <vector>

#include "dnnl.h"
#include "tests/bench/ceilings.h"

namespace goldfinch {

double OneDnnFlopsPerSecond(int64_t rows, int64_t width, bool quantized) {
  const int64_t out = width * 7 / 2;
  double seconds = 0;
  if (quantized) {
    // BLAS stores matrices by columns, so this is the transposed product.
    std::vector<uint8_t> x(rows * width, 3);
    std::vector<int8_t> w(out * width, 2);
    std::vector<int32_t> y(rows * out);
    const int32_t offset = 0;
    seconds = Fastest(8, [&] {
      dnnl_gemm_u8s8s32('N', 'T', 'F', rows, out, width, 1.f, x.data(), width, 0, w.data(), width, 0, 0.f, y.data(),
                        out, &offset);
    });
  } else {
    std::vector<float> x(rows * width, 0.5f), w(out * width, 0.25f), y(rows * out);
    seconds = Fastest(
        8, [&] { dnnl_sgemm('N', 'T', rows, out, width, 1.f, x.data(), width, w.data(), width, 0.f, y.data(), out); });
  }
  return 2.0 * static_cast<double>(rows * width * out) / seconds;
}

int64_t ProcessBytes(const std::string& field) {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.starts_with(field + ":")) return std::stoll(line.substr(field.size() + 1)) * 1024;
  }
  return 0;
}

bool ForgetPeakMemory() {
  std::ofstream file("/proc/self/clear_refs");
  file << "5" << std::flush;
  return file.good();
}

}  // namespace goldfinch
