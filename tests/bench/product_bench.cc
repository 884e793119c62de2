// Products of one row and of many with weights of every type: few rows beside the bandwidth of reading memory, many
// beside oneDNN's products of the same shape (sgemm, u8s8s32), both measured in the same run. GB/s are of the bytes
// that must be touched: of weights by inputs those inputs that are not zero in all rows.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "dnnl.h"
#include "kernels/backend.h"
#include "kernels/quantize.h"
#include "tests/bench/ceilings.h"

namespace goldfinch {
namespace {

struct Options {
  int threads = 0;
  int64_t out = 7168;
  int64_t in = 2048;
  std::vector<int64_t> rows = {1, 2, 4, 8, 64, 512};
  int zeros = 50;  // of 100 elements of x
};

constexpr int64_t kManyRows = 64;             // from which products are bound by arithmetic
constexpr int64_t kBytes = int64_t{1} << 30;  // of weights read one after another: more than caches hold

Tensor Allocate(Backend& backend, DType dtype, const Shape& shape, std::vector<std::shared_ptr<void>>& memory) {
  Tensor tensor{nullptr, dtype, shape};
  auto allocated = backend.Allocate(tensor.bytes(), "weights");
  GF_CHECK(allocated.ok()) << allocated.status();
  tensor.data = allocated->get();
  memory.push_back(*std::move(allocated));
  return tensor;
}

// oneDNN's rate for so many rows, FLOP/s: fp32, or 8 bits.
double OneDnnRate(const Options& options, int64_t rows, bool is_int8) {
  const int64_t in = options.in, out = options.out;
  const auto rate = [&](const auto& product) {
    return 2.0 * static_cast<double>(rows * out * in) / Fastest(4, product);
  };
  if (!is_int8) {
    const std::vector<float> x(rows * in, 0.5f), w(out * in, 0.25f);
    std::vector<float> y(rows * out);
    return rate([&] { dnnl_sgemm('N', 'T', rows, out, in, 1.f, x.data(), in, w.data(), in, 0.f, y.data(), out); });
  }
  const std::vector<uint8_t> x(rows * in, 3);
  const std::vector<int8_t> w(out * in, 5);
  std::vector<int32_t> y(rows * out);
  const int32_t zero = 0;
  return rate([&] {
    dnnl_gemm_u8s8s32('N', 'T', 'F', rows, out, in, 1.f, x.data(), in, 0, w.data(), in, 0, 0.f, y.data(), out, &zero);
  });
}

// The share of the inputs of x [rows, in] that are not zero in every row.
double TouchedShare(ConstTensor x) {
  const int64_t rows = x.dim(0), in = x.dim(1);
  int64_t touched = 0;
  for (int64_t i = 0; i < in; ++i) {
    bool zero = true;
    for (int64_t row = 0; row < rows; ++row) zero = zero && x.f32()[row * in + i] == 0;
    touched += zero ? 0 : 1;
  }
  return static_cast<double>(touched) / static_cast<double>(in);
}

void Run(const Options& options) {
  const std::unique_ptr<Backend> backend = MakeCpuBackend(options.threads);
  const double ceiling = ReadBytesPerSecond(backend->threads(), kBytes);
  absl::PrintF("%s; [%d, %d], %d %% of x are zero; reads at %.1f GB/s\n%-13s%6s%12s%10s%8s%12s%14s\n",
               backend->Describe(), options.out, options.in, options.zeros, ceiling / 1e9, "type", "rows", "us", "GB/s",
               "ratio", "GFLOP/s", "of oneDNN's");
  // oneDNN's rate, by number of rows and type, where there are many rows.
  std::map<std::pair<int64_t, bool>, double> onednn;
  for (int64_t rows : options.rows) {
    if (rows < kManyRows) continue;
    for (bool is_int8 : {false, true}) onednn[{rows, is_int8}] = OneDnnRate(options, rows, is_int8);
  }
  struct Kind {
    DType dtype;
    bool by_input;
    const char* name;
  };
  for (const auto& [dtype, by_input, name] :
       {Kind{DType::kBf16, false, "bf16"}, Kind{DType::kInt8, false, "int8"}, Kind{DType::kInt4, false, "int4"},
        Kind{DType::kInt8, true, "int8 by inputs"}, Kind{DType::kInt4, true, "int4 by inputs"}}) {
    if (by_input && !CanQuantizeByInput(options.out, options.in)) continue;
    std::vector<std::shared_ptr<void>> memory;
    std::vector<Matrix> weights;
    int64_t bytes = 0;
    while (bytes < kBytes) {
      Matrix weight{Allocate(*backend, dtype, {options.out, options.in}, memory)};
      // Any bytes are weights, if not bf16's NaN.
      std::fill_n(static_cast<char*>(const_cast<void*>(weight.data.data)), weight.data.bytes(), 0x3D);
      if (IsQuantized(dtype)) {
        const auto scales = (by_input ? QuantizedRowScales : QuantizedScales)(dtype, options.out, options.in);
        weight.scales = Allocate(*backend, scales.dtype, scales.shape, memory);
      }
      if (by_input) {
        weight.layout = Matrix::Layout::kInOut;
        weight.data.shape = {options.in, options.out};
      }
      bytes += weight.data.bytes() + weight.scales.bytes();
      weights.push_back(weight);
    }
    for (int64_t rows : options.rows) {
      std::vector<std::shared_ptr<void>> row_memory;
      const Tensor x = Allocate(*backend, DType::kF32, {rows, options.in}, row_memory);
      const Tensor out = Allocate(*backend, DType::kF32, {rows, options.out}, row_memory);
      std::mt19937 random(1);
      std::normal_distribution<float> normal;
      for (int64_t i = 0; i < rows * options.in; ++i) {
        const float value = normal(random);
        x.f32()[i] = static_cast<int>(random() % 100) < options.zeros ? 0 : value;
      }
      const auto products = std::min<int64_t>(static_cast<int64_t>(weights.size()), std::max<int64_t>(1, 400 / rows));
      size_t next = 0;  // goes round all weights, so that none is in a cache
      const double seconds = Fastest(4,
                                     [&] {
                                       for (int64_t i = 0; i < products; ++i) {
                                         backend->MatMul(x, weights[next++ % weights.size()], {}, out);
                                       }
                                     }) /
                             static_cast<double>(products);
      const Matrix& weight = weights[0];
      const double touched = (by_input ? TouchedShare(x) : 1) * static_cast<double>(weight.data.bytes()) +
                             static_cast<double>(weight.scales.bytes());
      const double flops = 2.0 * static_cast<double>(rows * options.out * options.in) / seconds;
      absl::PrintF("%-13s%6d%12.0f%10.1f%8.3f%12.1f", name, rows, seconds * 1e6, touched / seconds / 1e9,
                   touched / seconds / ceiling, flops / 1e9);
      if (rows >= kManyRows) absl::PrintF("%14.3f", flops / onednn.at({rows, IsQuantized(dtype)}));
      absl::PrintF("\n");
      std::fflush(stdout);
    }
  }
}

}  // namespace
}  // namespace goldfinch

int main(int argc, char** argv) {
  goldfinch::Options options;
  CLI::App app("Times products with weights of every type.", "product_bench");
  app.add_option("--rows", options.rows, "rows of a product")->capture_default_str();
  app.add_option("--out", options.out, "a multiple of 16")->capture_default_str();
  app.add_option("--in", options.in, "a multiple of 32")->capture_default_str();
  app.add_option("--zeros", options.zeros, "of 100 elements of x")->check(CLI::Range(0, 100))->capture_default_str();
  app.add_option("--threads", options.threads, "threads; 0: one per core")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  goldfinch::Run(options);
}
