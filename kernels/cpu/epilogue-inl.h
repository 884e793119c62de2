// Applies an Epilogue (kernels/backend.h) to a product before it is stored. Included once per SIMD target (see
// Highway's foreach_target).

#include <cstddef>
#include <cstdint>

#include "kernels/backend.h"

#if defined(GOLDFINCH_KERNELS_CPU_EPILOGUE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GOLDFINCH_KERNELS_CPU_EPILOGUE_INL_H_
#undef GOLDFINCH_KERNELS_CPU_EPILOGUE_INL_H_
#else
#define GOLDFINCH_KERNELS_CPU_EPILOGUE_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace goldfinch::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

HWY_INLINE VF Activate(Activation activation, VF x) {
  const DF df;
  switch (activation) {
    case Activation::kNone:
      return x;
    case Activation::kRelu2: {
      const VF positive = hn::Max(hn::Zero(df), x);  // in this order a NaN stays a NaN
      return hn::Mul(positive, positive);
    }
    case Activation::kSilu:
      return hn::Mul(x, Sigmoid(x));
    case Activation::kSigmoid:
      return Sigmoid(x);
    case Activation::kTanh:
      return hn::Tanh(df, x);
  }
  return x;
}

// Applies the epilogue to one row of a tile and stores it as out[column .. column + count).
inline void FinishRow(const float* sums, const Epilogue& epilogue, int64_t row, int64_t column, int64_t count,
                      Tensor out) {
  const int64_t width = out.dim(1);
  float* to = out.f32() + row * width + column;
  const float* bias = epilogue.bias ? epilogue.bias.f32() + column : nullptr;
  const float* multiply = epilogue.multiply ? epilogue.multiply.f32() + row * width + column : nullptr;
  FillRow(to, count, [&](size_t i, size_t left) HWY_ATTR {
    VF value = LoadN(sums + i, left);
    if (bias != nullptr) value = hn::Add(value, LoadN(bias + i, left));
    value = Activate(epilogue.activation, value);
    if (multiply != nullptr) value = hn::Mul(value, LoadN(multiply + i, left));
    if (epilogue.accumulate) value = hn::Add(value, LoadN(to + i, left));
    return value;
  });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace goldfinch::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // GOLDFINCH_KERNELS_CPU_EPILOGUE_INL_H_
