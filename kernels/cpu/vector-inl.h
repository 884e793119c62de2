// Vectors of floats: loads from and stores to every storage type, partial vectors, and the functions of neural
// networks. Included once per SIMD target (see Highway's foreach_target).

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/backend.h"

#if defined(GOLDFINCH_KERNELS_CPU_VECTOR_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GOLDFINCH_KERNELS_CPU_VECTOR_INL_H_
#undef GOLDFINCH_KERNELS_CPU_VECTOR_INL_H_
#else
#define GOLDFINCH_KERNELS_CPU_VECTOR_INL_H_
#endif

#include "hwy/contrib/math/math-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace goldfinch::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using VF = hn::Vec<DF>;

// Storage types of weights.
struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

HWY_INLINE VF LoadFloats(const float* p) { return hn::LoadU(DF(), p); }
HWY_INLINE VF LoadFloats(const Bf16* p) {
  const hn::RebindToUnsigned<DF> du;
  const hn::Rebind<uint16_t, DF> du16;
  const auto bits = hn::PromoteTo(du, hn::LoadU(du16, reinterpret_cast<const uint16_t*>(p)));
  return hn::BitCast(DF(), hn::ShiftLeft<16>(bits));
}
HWY_INLINE VF LoadFloats(const F16* p) {
  const hn::Rebind<hwy::float16_t, DF> d16;
  const VF value = hn::PromoteTo(DF(), hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(p)));
#if HWY_TARGET >= HWY_SSE4
  // Highway's own conversion without F16C turns infinity and NaN into numbers.
  const hn::RebindToSigned<DF> di;
  const hn::Rebind<uint16_t, DF> du16;
  const auto bits = hn::PromoteTo(di, hn::LoadU(du16, reinterpret_cast<const uint16_t*>(p)));
  const auto magnitude = hn::And(bits, hn::Set(di, 0x7FFF));
  const auto sign = hn::ShiftLeft<16>(hn::Sub(bits, magnitude));
  const auto special = hn::Or(hn::Or(sign, hn::Set(di, 0x7F800000)), hn::ShiftLeft<13>(magnitude));
  return hn::IfThenElse(hn::RebindMask(DF(), hn::Gt(magnitude, hn::Set(di, 0x7BFF))), hn::BitCast(DF(), special),
                        value);
#else
  return value;
#endif
}

HWY_INLINE VF LoadFloats(const int8_t* p) {
  const hn::RebindToSigned<DF> di;
  const hn::Rebind<int8_t, DF> d8;
  return hn::ConvertTo(DF(), hn::PromoteTo(di, hn::LoadU(d8, p)));
}

// The first `count` < Lanes elements, zeros after.
template <typename T>
HWY_INLINE VF LoadFloatsPartial(const T* p, size_t count) {
  HWY_ALIGN T buffer[hn::MaxLanes(DF())] = {};
  std::memcpy(buffer, p, count * sizeof(T));
  return LoadFloats(buffer);
}

template <typename T>
inline void WidenRow(const T* from, size_t count, float* to) {
  const size_t lanes = hn::Lanes(DF());
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) hn::StoreU(LoadFloats(from + i), DF(), to + i);
  if (i < count) {
    HWY_ALIGN float buffer[hn::MaxLanes(DF())];
    hn::Store(LoadFloatsPartial(from + i, count - i), DF(), buffer);
    std::memcpy(to + i, buffer, (count - i) * sizeof(float));
  }
}

// Calls visit(static_cast<const T*>(data)) with the element type of a weight.
template <class Visit>
HWY_INLINE void VisitWeight(const void* data, DType dtype, Visit visit) {
  switch (dtype) {
    case DType::kF32:
      return visit(static_cast<const float*>(data));
    case DType::kBf16:
      return visit(static_cast<const Bf16*>(data));
    case DType::kF16:
      return visit(static_cast<const F16*>(data));
    default:
      GF_CHECK(false) << "no product with " << Name(dtype);
  }
}

// Elements [offset, offset + count) of a weight as fp32.
inline void Widen(ConstTensor weight, int64_t offset, int64_t count, float* to) {
  VisitWeight(weight.data, weight.dtype, [&](auto* w) HWY_ATTR { WidenRow(w + offset, count, to); });
}

// Rounds to nearest, ties to even. Values beyond fp16's range become its largest.
HWY_INLINE void StoreFloats(VF v, float* p) { hn::StoreU(v, DF(), p); }
HWY_INLINE void StoreFloats(VF v, Bf16* p) {
  const hn::RebindToUnsigned<DF> du;
  const hn::Rebind<uint16_t, DF> du16;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(du, 0x7FFF)), odd));
  // Rounding could carry a NaN into infinity.
  const auto result = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(v)), hn::Set(du, 0x7FC0), rounded);
  hn::StoreU(hn::TruncateTo(du16, result), du16, reinterpret_cast<uint16_t*>(p));
}
HWY_INLINE void StoreFloats(VF v, F16* p) {
  const DF df;
  // The second operand of Min and Max survives a NaN.
  const VF clamped = hn::Min(hn::Set(df, 65504.f), hn::Max(hn::Set(df, -65504.f), v));
#if HWY_TARGET >= HWY_SSE4
  // Highway's own conversion without F16C truncates. Below 2^-14, adding 1/2 rounds at fp16's last digit; above, the
  // rounding may carry into the exponent.
  const hn::RebindToUnsigned<DF> du;
  const hn::Rebind<uint16_t, DF> du16;
  const auto bits = hn::BitCast(du, clamped);
  const auto sign = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 0x8000));
  const auto magnitude = hn::And(bits, hn::Set(du, 0x7FFFFFFF));
  const VF half = hn::Set(df, 0.5f);
  const auto small = hn::Sub(hn::BitCast(du, hn::Add(hn::BitCast(df, magnitude), half)), hn::BitCast(du, half));
  const auto odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 1));
  const auto rebased = hn::Add(hn::Sub(magnitude, hn::Set(du, 112u << 23)), hn::Add(hn::Set(du, 0xFFF), odd));
  const auto is_small = hn::RebindMask(du, hn::Lt(hn::Abs(v), hn::Set(df, 0x1p-14f)));
  const auto finite = hn::IfThenElse(is_small, small, hn::ShiftRight<13>(rebased));
  const auto result = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(v)), hn::Set(du, 0x7E00), hn::Or(sign, finite));
  hn::StoreU(hn::TruncateTo(du16, result), du16, reinterpret_cast<uint16_t*>(p));
#else
  const hn::Rebind<hwy::float16_t, DF> d16;
  hn::StoreU(hn::DemoteTo(d16, clamped), d16, reinterpret_cast<hwy::float16_t*>(p));
#endif
}

template <typename T>
inline void NarrowRow(const float* from, size_t count, T* to) {
  const size_t lanes = hn::Lanes(DF());
  size_t i = 0;
  for (; i + lanes <= count; i += lanes) StoreFloats(hn::LoadU(DF(), from + i), to + i);
  if (i < count) {
    HWY_ALIGN T buffer[hn::MaxLanes(DF())];
    StoreFloats(LoadFloatsPartial(from + i, count - i), buffer);
    std::memcpy(to + i, buffer, (count - i) * sizeof(T));
  }
}

// Stores `count` floats as elements [offset, offset + count) of a tensor.
inline void Narrow(const float* from, int64_t count, Tensor to, int64_t offset) {
  switch (to.dtype) {
    case DType::kF32:
      std::memcpy(static_cast<float*>(to.data) + offset, from, count * sizeof(float));
      return;
    case DType::kBf16:
      return NarrowRow(from, count, static_cast<Bf16*>(to.data) + offset);
    case DType::kF16:
      return NarrowRow(from, count, static_cast<F16*>(to.data) + offset);
    default:
      GF_CHECK(false) << "floats cannot be stored as " << Name(to.dtype);
  }
}

// Loads and stores at the end of a row: `left` elements remain.
HWY_INLINE VF LoadN(const float* p, size_t left) {
  return HWY_LIKELY(left >= hn::Lanes(DF())) ? hn::LoadU(DF(), p) : LoadFloatsPartial(p, left);
}
HWY_INLINE void StoreN(VF v, float* p, size_t left) {
  const DF df;
  if (HWY_LIKELY(left >= hn::Lanes(df))) {
    hn::StoreU(v, df, p);
  } else {
    HWY_ALIGN float buffer[hn::MaxLanes(df)];
    hn::Store(v, df, buffer);
    std::memcpy(p, buffer, left * sizeof(float));
  }
}

// to[i] = f(i, left): f gets the index of a vector and how many elements are left from there, and returns the vector.
template <class F>
HWY_INLINE void FillRow(float* to, size_t count, F f) {
  const size_t lanes = hn::Lanes(DF());
  for (size_t i = 0; i < count; i += lanes) StoreN(f(i, count - i), to + i, count - i);
}

// The sum of f(i, left) over a row; f must return zeros beyond `left`. Four sums run in parallel, because a single one
// would wait for each addition.
template <class F>
HWY_INLINE float SumRow(size_t count, F f) {
  const DF df;
  const size_t lanes = hn::Lanes(df);
  VF sum[4] = {hn::Zero(df), hn::Zero(df), hn::Zero(df), hn::Zero(df)};
  size_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    for (size_t s = 0; s < 4; ++s) sum[s] = hn::Add(sum[s], f(i + s * lanes, count - i - s * lanes));
  }
  for (; i < count; i += lanes) sum[0] = hn::Add(sum[0], f(i, count - i));
  return hn::GetLane(hn::SumOfLanes(df, hn::Add(hn::Add(sum[0], sum[1]), hn::Add(sum[2], sum[3]))));
}

// e^x for any x: infinity where e^x is beyond fp32, and NaN for NaN. Highway's function is valid up to x = 104 only,
// and returns 0 for NaN.
HWY_INLINE VF Exp(VF x) {
  const DF df;
  return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(df, hn::Min(x, hn::Set(df, 100.f))));
}

HWY_INLINE VF Sigmoid(VF x) {
  const DF df;
  return hn::Div(hn::Set(df, 1.f), hn::Add(hn::Set(df, 1.f), Exp(hn::Neg(x))));
}

// Widens row `row` of the compressed cache to its numbers, as CompressedRowWidth defines them.
inline void WidenCompressedRow(ConstTensor pages, int64_t row, int64_t width, float* to) {
  if (pages.dtype != DType::kInt8) return Widen(pages, row * width, width, to);
  const auto* from = static_cast<const int8_t*>(pages.data) + row * CompressedRowWidth(DType::kInt8, width);
  Bf16 stored;
  std::memcpy(&stored, from + width, sizeof(stored));
  float scale;
  WidenRow(&stored, 1, &scale);
  WidenRow(from, width, to);
  FillRow(to, width,
          [&](size_t i, size_t left) HWY_ATTR { return hn::Mul(LoadN(to + i, left), hn::Set(DF(), scale)); });
}

// The statistics of LayerNorm of a row: (x - mean) * scale, scale = 1 / sqrt(variance + epsilon).
struct Moments {
  Moments(const float* x, size_t count, float epsilon) {
    const DF df;
    mean = hn::Set(df, SumRow(count, [&](size_t i, size_t left) HWY_ATTR { return LoadN(x + i, left); }) / count);
    const float variance = SumRow(count,
                                  [&](size_t i, size_t left) HWY_ATTR {
                                    const VF centered = hn::Sub(LoadN(x + i, left), mean);
                                    const VF kept = hn::IfThenElseZero(hn::FirstN(df, left), centered);
                                    return hn::Mul(kept, kept);
                                  }) /
                           count;
    scale = hn::Set(df, 1.f / std::sqrt(variance + epsilon));
  }
  HWY_INLINE VF Standardize(VF x) const { return hn::Mul(hn::Sub(x, mean), scale); }

  VF mean, scale;
};

// LayerNorm of one row. `to` may be `x`.
inline void LayerNormRow(const float* x, const float* weight, const float* bias, size_t count, float epsilon,
                         float* to) {
  const Moments moments(x, count, epsilon);
  FillRow(to, count, [&](size_t i, size_t left) HWY_ATTR {
    return hn::MulAdd(moments.Standardize(LoadN(x + i, left)), LoadN(weight + i, left), LoadN(bias + i, left));
  });
}

// rms(x) = x / (sqrt(mean(x^2)) + 1e-8), in place.
inline void RmsRow(float* x, size_t count) {
  const float squares = SumRow(count, [&](size_t i, size_t left) HWY_ATTR {
    const VF v = LoadN(x + i, left);
    return hn::Mul(v, v);
  });
  const VF scale = hn::Set(DF(), 1.f / (std::sqrt(squares / count) + 1e-8f));
  FillRow(x, count, [&](size_t i, size_t left) HWY_ATTR { return hn::Mul(LoadN(x + i, left), scale); });
}

// to = x + (prev - x) * mix.
inline void LerpRow(const float* x, const float* prev, const float* mix, size_t count, float* to) {
  FillRow(to, count, [&](size_t i, size_t left) HWY_ATTR {
    const VF xv = LoadN(x + i, left);
    return hn::MulAdd(hn::Sub(LoadN(prev + i, left), xv), LoadN(mix + i, left), xv);
  });
}

inline void TanhRow(float* x, size_t count) {
  FillRow(x, count, [&](size_t i, size_t left) HWY_ATTR { return hn::Tanh(DF(), LoadN(x + i, left)); });
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace goldfinch::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // GOLDFINCH_KERNELS_CPU_VECTOR_INL_H_
