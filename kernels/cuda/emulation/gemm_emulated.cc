// Products of the emulation: small ones by the kernel that devices use for odd shapes, others in double.
#include <cmath>
#include <vector>

#include "kernels/cuda/device.h"
#include "kernels/cuda/emulation/emulation.h"
#include "kernels/cuda/emulation/products.h"
#include "kernels/cuda/emulation/stream.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_plain.h"

namespace goldfinch::cuda {
namespace {

float Load(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kF32:
      return static_cast<const float*>(data)[index];
    case DType::kF16:
      return ToFloat(static_cast<const f16_t*>(data)[index]);
    default:
      return ToFloat(static_cast<const bf16_t*>(data)[index]);
  }
}

void Store(float value, DType dtype, int64_t index, void* data) {
  switch (dtype) {
    case DType::kF32:
      static_cast<float*>(data)[index] = value;
      return;
    case DType::kF16:
      // The library stores sums beyond the range as infinity.
      static_cast<f16_t*>(data)[index] = std::abs(value) >= 65520
                                             ? f16_t{static_cast<uint16_t>(value > 0 ? 0x7C00 : 0xFC00)}
                                             : FromFloat<f16_t>(value);
      return;
    default:
      static_cast<bf16_t*>(data)[index] = FromFloat<bf16_t>(value);
  }
}

class EmulatedGemm : public GemmRunner {
 public:
  explicit EmulatedGemm(void* stream) : stream_(stream) {}

  void Run(const Gemm& g) override {
    GF_CHECK(g.out_dtype == g.in_dtype || g.out_dtype == DType::kF32);
    GF_CHECK(g.bias == nullptr || g.out_dtype == DType::kF32);
    GF_CHECK(g.ldx >= g.inner && g.ldout >= g.columns && g.ldweight >= (g.out_in ? g.inner : g.columns));
    constexpr int64_t kSmall = 20000;
    if (g.batch * g.rows * g.columns * g.inner < kSmall) return RunPlainGemm(stream_, g);
    emulation::Queue(stream_, [g] { Multiply(g); });
  }

 private:
  static void Multiply(const Gemm& g) {
    const emulation::Access access;
    // Every weight is converted once; `weight` is [columns, inner].
    std::vector<float> x(g.inner), weight(g.columns * g.inner);
    std::vector<double> sums(g.columns);
    for (int64_t product = 0; product < g.batch; ++product) {
      for (int64_t column = 0; column < g.columns; ++column) {
        for (int64_t i = 0; i < g.inner; ++i) {
          const int64_t at = g.out_in ? column * g.ldweight + i : i * g.ldweight + column;
          weight[column * g.inner + i] = Load(g.weight, g.in_dtype, product * g.weight_stride + at);
        }
      }
      for (int64_t row = 0; row < g.rows; ++row) {
        for (int64_t i = 0; i < g.inner; ++i) x[i] = Load(g.x, g.in_dtype, product * g.x_stride + row * g.ldx + i);
        emulation::MultiplyRow(x.data(), weight.data(), g.inner, g.columns, sums.data());
        for (int64_t column = 0; column < g.columns; ++column) {
          double sum = sums[column];
          const int64_t at = product * g.out_stride + row * g.ldout + column;
          if (g.bias != nullptr) sum += static_cast<double>(g.bias[column]);
          if (g.accumulate) sum += static_cast<double>(Load(g.out, g.out_dtype, at));
          Store(static_cast<float>(sum), g.out_dtype, at, g.out);
        }
      }
    }
  }

  void* const stream_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<GemmRunner>> MakeGemmRunner(Runtime& runtime) {
  return std::make_unique<EmulatedGemm>(runtime.stream());
}

}  // namespace goldfinch::cuda
