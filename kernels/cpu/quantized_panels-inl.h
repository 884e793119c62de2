// Rows of x, rounded to 8 bits, times panels of quantized weights (kernels/quantize.h); included once per SIMD target.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "hwy/cache_control.h"
#include "kernels/quantize.h"

#if defined(GOLDFINCH_KERNELS_CPU_QUANTIZED_PANELS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GOLDFINCH_KERNELS_CPU_QUANTIZED_PANELS_INL_H_
#undef GOLDFINCH_KERNELS_CPU_QUANTIZED_PANELS_INL_H_
#else
#define GOLDFINCH_KERNELS_CPU_QUANTIZED_PANELS_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/cpu/vector-inl.h"

// HWY_BEFORE_NAMESPACE for all that uses these products.
#undef HWY_BEFORE_QUANTIZED_NAMESPACE
#if HWY_TARGET == HWY_AVX3_DL
#define HWY_BEFORE_QUANTIZED_NAMESPACE() \
  HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni")  // Highway 1.0.3 has "avxvnni" in its place
#else
#define HWY_BEFORE_QUANTIZED_NAMESPACE() HWY_BEFORE_NAMESPACE()
#endif

HWY_BEFORE_QUANTIZED_NAMESPACE();
namespace goldfinch::cpu::HWY_NAMESPACE {

using DI = hn::RebindToSigned<DF>;
using VI = hn::Vec<DI>;
using DU8 = hn::Repartition<uint8_t, DF>;
using VU8 = hn::Vec<DU8>;

// AVX-512 VNNI multiplies bytes and adds four products to each sum in one instruction.
constexpr bool kVnni = HWY_TARGET <= HWY_AVX3_DL;
constexpr int kFours = kGroupIn / 4;                            // fours of neighboring inputs in a group
constexpr int kLanes = static_cast<int>(hn::MaxLanes(DF()));    // 32-bit lanes of a vector
constexpr int kVectors = static_cast<int>(kPanelOut) / kLanes;  // vectors with one number for each output of a panel
// Rows of a tile: as many as the registers hold sums for.
constexpr int kRows = HWY_TARGET <= HWY_AVX3 ? 12 : HWY_TARGET <= HWY_AVX2 ? 4 : 2;
// A group with no larger element counts as zeros, so that 127 / x is finite.
constexpr float kZeroBelow = 0x1p-100f;

// How four inputs of a row of x are stored: as bytes with VNNI, else as the 16-bit pairs (0, 2) and (1, 3).
constexpr int kWordsOfFour = kVnni ? 1 : 2;
constexpr int kGroupWords = kFours * kWordsOfFour;

// Rows of x after quantization.
struct Rows {
  int32_t* words;    // [rows, groups, kGroupWords]
  float* scales;     // [rows, groups]
  int32_t* offsets;  // [rows, groups]: what the sum of a group starts from, because weights are stored as q + zero
};

// a * b + c, rounded once on every instruction set.
HWY_INLINE VF FusedMulAdd(VF a, VF b, VF c) {
#if HWY_TARGET <= HWY_AVX2
  return hn::MulAdd(a, b, c);
#else
  const DF df;
  HWY_ALIGN float x[kLanes], y[kLanes], z[kLanes];
  hn::Store(a, df, x);
  hn::Store(b, df, y);
  hn::Store(c, df, z);
  for (int i = 0; i < kLanes; ++i) z[i] = std::fma(x[i], y[i], z[i]);
  return hn::Load(df, z);
#endif
}

// Stores four inputs in the form that AddFour expects.
HWY_INLINE void PackFour(const int8_t* values, int32_t* words) {
  if constexpr (kVnni) {
    std::memcpy(words, values, 4);
  } else {
    const int16_t pairs[4] = {values[0], values[2], values[1], values[3]};
    std::memcpy(words, pairs, sizeof(pairs));
  }
}

// Rounds a group of x to 8 bits. `zero` is what the weights are stored with.
HWY_INLINE void QuantizeGroup(const float* x, int32_t zero, int32_t* words, float* scale, int32_t* offset) {
  const DF df;
  const DI di;
  VI most = hn::Zero(di);  // the bits of the largest magnitude: they have the order of the magnitudes, NaN last
  for (int64_t i = 0; i < kGroupIn; i += kLanes) {
    most = hn::Max(most, hn::BitCast(di, hn::Abs(hn::LoadU(df, x + i))));
  }
  const float largest = hn::GetLane(hn::BitCast(df, hn::MaxOfLanes(di, most)));
  HWY_ALIGN int8_t bytes[kGroupIn] = {};
  *offset = 0;
  if (!std::isfinite(largest)) {
    *scale = std::numeric_limits<float>::quiet_NaN();
  } else if (largest < kZeroBelow) {
    *scale = 0;
  } else {
    *scale = largest / 127;
    const VF inverse = hn::Set(df, 127 / largest);
    const hn::Rebind<int8_t, DI> d8;
    VI sum = hn::Zero(di);
    for (int64_t i = 0; i < kGroupIn; i += kLanes) {
      const VI q = hn::NearestInt(hn::Mul(hn::LoadU(df, x + i), inverse));
      hn::StoreU(hn::DemoteTo(d8, q), d8, bytes + i);
      sum = hn::Add(sum, q);
    }
    *offset = -zero * hn::GetLane(hn::SumOfLanes(di, sum));
  }
  for (int i = 0; i < kFours; ++i) PackFour(bytes + 4 * i, words + i * kWordsOfFour);
}

// Adds four products to the sum of each output: w has four weights of each, x four inputs.
HWY_INLINE VI AddFour(VI sum, VU8 w, const int32_t* HWY_RESTRICT x) {
  const DI di;
#if HWY_TARGET <= HWY_AVX3_DL
  return VI{_mm512_dpbusd_epi32(sum.raw, w.raw, hn::Set(di, *x).raw)};
#else
  const hn::Repartition<uint16_t, DF> du16;
  const hn::Repartition<int16_t, DF> di16;
  const auto pairs = hn::BitCast(du16, w);
  const auto even = hn::BitCast(di16, hn::And(pairs, hn::Set(du16, 0x00FF)));
  const auto odd = hn::BitCast(di16, hn::ShiftRight<8>(pairs));
  // On x86 the second sum of these is not used: neighboring products are added.
  VI unused = hn::Zero(di);
  sum = hn::ReorderWidenMulAccumulate(di, even, hn::BitCast(di16, hn::Set(di, x[0])), sum, unused);
  return hn::ReorderWidenMulAccumulate(di, odd, hn::BitCast(di16, hn::Set(di, x[1])), sum, unused);
#endif
}

// How weights of one type are stored in a panel.
struct Int8 {
  static constexpr int32_t kZero = 128;
  static constexpr bool kGroupScales = false;
  static constexpr int64_t kGroupBytes = kPanelOut * kGroupIn;
  // Four inputs `four` of the outputs of vector `v`.
  static HWY_INLINE VU8 Weights(const uint8_t* group, int four, int v) {
    return hn::LoadU(DU8(), group + (four * kVectors + v) * kLanes * 4);
  }
};

struct Int4 {
  static constexpr int32_t kZero = 8;
  static constexpr bool kGroupScales = true;
  static constexpr int64_t kGroupBytes = kPanelOut * kGroupIn / 2;
  static HWY_INLINE VU8 Weights(const uint8_t* group, int four, int v) {
    const DU8 d8;
    const hn::Repartition<uint16_t, DF> d16;
    const auto both = hn::LoadU(d8, group + (four / 2 * kVectors + v) * kLanes * 4);
    const auto half = four % 2 == 0 ? both : hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(d16, both)));
    return hn::And(half, hn::Set(d8, 0x0F));
  }
};

// Int4 weights of a byte each, in panels that are made from rows by inputs.
struct Int4Bytes : Int8 {
  static constexpr int32_t kZero = Int4::kZero;
  static constexpr bool kGroupScales = true;
};

// Groups [begin, end) of the `all` groups of a row.
struct GroupRange {
  int64_t begin, end, all;
};

// What a product prefetches with each group: bytes [begin, end) of the group that is `distance` bytes further on.
struct Ahead {
  int64_t distance, begin, end;
};

// The groups of a range of a panel, and its scales: one set for each group, `scale_stride` apart, or one for all.
struct Panel {
  const uint8_t* weights;  // at group `begin`
  const void* scales;      // at group 0
  int64_t scale_stride;
  Ahead ahead;
};

// out[r * stride + i] = row r of x times output i of a panel, for R rows. The calls for one panel pass consecutive
// ranges, from group 0 to the last; each continues from the sums that the one before left in `out`.
template <class Type, int R>
HWY_INLINE void PanelTile(const Rows& x, int64_t row, const GroupRange& range, const Panel& panel,
                          float* HWY_RESTRICT out, int64_t stride) {
  const int64_t groups = range.all;
  const uint8_t* HWY_RESTRICT weights = panel.weights;
  const void* HWY_RESTRICT scales = panel.scales;
  const int64_t scale_stride = panel.scale_stride;
  const DF df;
  const DI di;
  const int32_t* words[R];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) words[r] = x.words + (row + r) * groups * kGroupWords;
  const float* x_scales = x.scales + row * groups;
  const int32_t* offsets = x.offsets + row * groups;
  VF total[R][kVectors];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      total[r][v] = range.begin == 0 ? hn::Zero(df) : hn::LoadU(df, out + r * stride + v * kLanes);
    }
  }
  for (int64_t group = range.begin; group < range.end; ++group, weights += Type::kGroupBytes) {
    for (int64_t byte = panel.ahead.begin; byte < panel.ahead.end; byte += 64) {
      hwy::Prefetch(weights + panel.ahead.distance + byte);
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      VI sum[R];
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) sum[r] = hn::Set(di, offsets[r * groups + group]);
#pragma GCC unroll 8
      for (int four = 0; four < kFours; ++four) {
        const VU8 w = Type::Weights(weights, four, v);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
          sum[r] = AddFour(sum[r], w, words[r] + group * kGroupWords + four * kWordsOfFour);
        }
      }
      VF scale = hn::Zero(df);
      if constexpr (Type::kGroupScales) {
        scale = LoadFloats(static_cast<const F16*>(scales) + group * scale_stride + v * kLanes);
      }
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        VF of_group = hn::Set(df, x_scales[r * groups + group]);
        if constexpr (Type::kGroupScales) of_group = hn::Mul(of_group, scale);
        total[r][v] = FusedMulAdd(hn::ConvertTo(df, sum[r]), of_group, total[r][v]);
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      VF result = total[r][v];
      if constexpr (!Type::kGroupScales) {
        if (range.end == groups) {
          result = hn::Mul(result, hn::LoadU(df, static_cast<const float*>(scales) + v * kLanes));
        }
      }
      hn::StoreU(result, df, out + r * stride + v * kLanes);
    }
  }
}

// PanelTile for the largest number of rows that there is a tile for, at most `rows_left`. Returns that number.
template <class Type>
int64_t Tile(int64_t rows_left, const Rows& x, int64_t row, const GroupRange& range, const Panel& panel, float* out,
             int64_t stride) {
  if constexpr (kRows > 4) {
    if (rows_left >= kRows) {
      PanelTile<Type, kRows>(x, row, range, panel, out, stride);
      return kRows;
    }
  }
  if constexpr (kRows >= 4) {
    if (rows_left >= 4) {
      PanelTile<Type, 4>(x, row, range, panel, out, stride);
      return 4;
    }
  }
  if (rows_left >= 2) {
    PanelTile<Type, 2>(x, row, range, panel, out, stride);
    return 2;
  }
  PanelTile<Type, 1>(x, row, range, panel, out, stride);
  return 1;
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace goldfinch::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // GOLDFINCH_KERNELS_CPU_QUANTIZED_PANELS_INL_H_
