// Quantized weights that lie by inputs (kernels/quantize.h), included once per SIMD target: products of a few rows,
// which read only the inputs that are not zero, and the conversion to panels for more rows.

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "hwy/cache_control.h"
#include "kernels/backend.h"
#include "kernels/quantize.h"

#if defined(GOLDFINCH_KERNELS_CPU_QUANTIZED_BY_INPUT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef GOLDFINCH_KERNELS_CPU_QUANTIZED_BY_INPUT_INL_H_
#undef GOLDFINCH_KERNELS_CPU_QUANTIZED_BY_INPUT_INL_H_
#else
#define GOLDFINCH_KERNELS_CPU_QUANTIZED_BY_INPUT_INL_H_
#endif

#include "hwy/highway.h"
#include "kernels/cpu/quantized_panels-inl.h"
#include "kernels/cpu/vector-inl.h"

HWY_BEFORE_QUANTIZED_NAMESPACE();
namespace goldfinch::cpu::HWY_NAMESPACE {

constexpr int kStripVectors = static_cast<int>(kStripOut) / (4 * kLanes);  // vectors of bytes in a strip of an input

// Turns part `part` of a strip of four inputs, with rows at `rows`, into vectors of panels: to[v] is for panel v.
template <class Type>
HWY_INLINE void InterleaveFour(const uint8_t* const (&rows)[4], int64_t strip, int part, VU8 (&to)[4]) {
  const DU8 d8;
  const hn::Repartition<uint16_t, DF> d16;
  VU8 w[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    if constexpr (Type::kGroupScales) {  // two strips of 4 bits lie in one
      const auto both = hn::LoadU(d8, rows[i] + strip / 2 * kStripOut + part * 4 * kLanes);
      const auto half = strip % 2 == 0 ? both : hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(d16, both)));
      w[i] = hn::And(half, hn::Set(d8, 0x0F));
    } else {
      w[i] = hn::LoadU(d8, rows[i] + strip * kStripOut + part * 4 * kLanes);
    }
  }
  const auto low01 = hn::BitCast(d16, hn::InterleaveLower(d8, w[0], w[1]));
  const auto low23 = hn::BitCast(d16, hn::InterleaveLower(d8, w[2], w[3]));
  const auto high01 = hn::BitCast(d16, hn::InterleaveUpper(d8, w[0], w[1]));
  const auto high23 = hn::BitCast(d16, hn::InterleaveUpper(d8, w[2], w[3]));
  to[0] = hn::BitCast(d8, hn::InterleaveLower(d16, low01, low23));
  to[1] = hn::BitCast(d8, hn::InterleaveUpper(d16, low01, low23));
  to[2] = hn::BitCast(d8, hn::InterleaveLower(d16, high01, high23));
  to[3] = hn::BitCast(d8, hn::InterleaveUpper(d16, high01, high23));
}

// Input i of a quantized group of x.
HWY_INLINE int8_t InputOf(const int32_t* words, int i) {
  if constexpr (kVnni) {
    int8_t value;
    std::memcpy(&value, reinterpret_cast<const char*>(words) + i, sizeof(value));
    return value;
  }
  constexpr int kPlace[4] = {0, 2, 1, 3};
  int16_t value;
  std::memcpy(&value, reinterpret_cast<const char*>(words) + 2 * (i / 4 * 4 + kPlace[i % 4]), sizeof(value));
  return static_cast<int8_t>(value);
}

constexpr int64_t kBlockStripsMax = 8;
constexpr int64_t kAheadInputs = 16;

// Outputs of weights that lie by inputs: a block, or some strips of it.
struct Block {
  const uint8_t* weights;  // at input 0
  int64_t row_bytes;       // from an input to the next
  int64_t run_bytes;       // that one input has here
  int64_t first_out;
  int64_t strips;
};

// Part `index` of the outputs, cut into equal parts of so many strips. The number is even: two strips may share bytes.
inline Block BlockOf(const Matrix& weight, int64_t strips, int64_t index) {
  const int64_t out = weight.out(), block = ByInputBlock(out),
                row_bytes = weight.data.bytes() / weight.in() / (out / block);
  const int64_t first_out = index * strips * kStripOut, run_bytes = row_bytes * strips * kStripOut / block;
  const int64_t offset = first_out / block * weight.in() * row_bytes + first_out % block * row_bytes / block;
  return {static_cast<const uint8_t*>(weight.data.data) + offset, row_bytes, run_bytes, first_out, strips};
}

// Bytes from one made panel of so many groups to the next. A power of two would put all of them into the same cache
// sets.
constexpr int64_t MadeBytes(int64_t groups) { return groups * kGroupIn * kPanelOut + 64; }

// Copies the groups of a block to panels that are MadeBytes apart.
template <class Type>
void MakePanels(const Block& block, const GroupRange& range, uint8_t* panels) {
  const int64_t begin = range.begin * kGroupIn, end = range.end * kGroupIn;
  const int64_t panel_bytes = MadeBytes(range.end - range.begin);
  for (int64_t i = begin; i < end; i += 4) {
    const uint8_t* first = block.weights + i * block.row_bytes;
    const uint8_t* const rows[4] = {first, first + block.row_bytes, first + 2 * block.row_bytes,
                                    first + 3 * block.row_bytes};
    for (const uint8_t* row : rows) {
      for (int64_t line = 0; line < block.run_bytes; line += 64) {
        hwy::Prefetch(row + kAheadInputs * block.row_bytes + line);
      }
    }
    for (int64_t strip = 0; strip < block.strips; ++strip) {
      for (int part = 0; part < kStripVectors; ++part) {
        VU8 w[4];
        InterleaveFour<Type>(rows, strip, part, w);
#pragma GCC unroll 4
        for (int v = 0; v < 4; ++v) {
          hn::StoreU(w[v], DU8(), panels + (strip * 4 + v) * panel_bytes + (i - begin) * kPanelOut + part * 4 * kLanes);
        }
      }
    }
  }
}

constexpr int64_t kSparseRows = 4;  // more rows are faster as panels, even though their zeros are multiplied

// The inputs of a group that are not zero in all rows.
struct Found {
  int count = 0;
  int inputs[kGroupIn + 1];

  void Look(const Rows& x, int rows, int64_t groups, int64_t group) {
    int32_t words[kGroupWords] = {};
    for (int row = 0; row < rows; ++row) {
      for (int i = 0; i < kGroupWords; ++i) words[i] |= x.words[(row * groups + group) * kGroupWords + i];
    }
    count = 0;
    for (int i = 0; i < kGroupIn; ++i) {
      inputs[count] = i;
      count += InputOf(words, i) != 0 ? 1 : 0;
    }
  }
};

// out[r * width of the block + i] = row r of x times output i of a block, for all R rows. Inputs that are zero in all
// rows are not read.
template <class Type, int R>
void SparseRows(const Rows& x, int64_t groups, const Matrix& weight, const Block& block, float* HWY_RESTRICT out) {
  const DF df;
  const DI di;
  const int64_t width = weight.out(), outputs = block.strips * kStripOut;
  HWY_ALIGN int32_t sums[R * kBlockStripsMax * kStripOut];
  for (int64_t o = 0; o < R * outputs; o += kLanes) hn::StoreU(hn::Zero(df), df, out + o);
  Found now, next;
  next.Look(x, R, groups, 0);
  for (int64_t group = 0; group < groups; ++group) {
    now = next;
    next.count = 0;
    if (group + 1 < groups) next.Look(x, R, groups, group + 1);
    const uint8_t* group_rows = block.weights + group * kGroupIn * block.row_bytes;
    const auto* group_scales = static_cast<const F16*>(weight.scales.data) + group * width + block.first_out;
    if constexpr (Type::kGroupScales) {
      for (int64_t o = 0; o < outputs; o += 32) hwy::Prefetch(group_scales + width + o);
    }
    for (int row = 0; row < R; ++row) {
      const VI offset = hn::Set(di, x.offsets[row * groups + group]);
      for (int64_t o = 0; o < outputs; o += kLanes) hn::Store(offset, di, sums + row * outputs + o);
    }
    for (int begin = 0; begin < now.count; begin += 4) {
      const uint8_t* inputs[4];
      int32_t fours[R * kWordsOfFour];
      for (int i = 0; i < 4; ++i) {  // after the end the first one again, times zero
        inputs[i] = group_rows + now.inputs[begin + i < now.count ? begin + i : begin] * block.row_bytes;
      }
      for (int row = 0; row < R; ++row) {
        const int32_t* words = x.words + (row * groups + group) * kGroupWords;
        int8_t values[4] = {};
        for (int i = 0; i < std::min(4, now.count - begin); ++i) values[i] = InputOf(words, now.inputs[begin + i]);
        PackFour(values, fours + row * kWordsOfFour);
      }
      // The hardware prefetches the bytes that follow, but those are not the ones that are read next.
      for (int i = begin; i < std::min(begin + 4, next.count); ++i) {
        const uint8_t* input = group_rows + (kGroupIn + next.inputs[i]) * block.row_bytes;
        for (int64_t line = 0; line < block.run_bytes; line += 64) hwy::Prefetch(input + line);
      }
      for (int64_t strip = 0; strip < block.strips; ++strip) {
        for (int part = 0; part < kStripVectors; ++part) {
          VU8 w[4];
          InterleaveFour<Type>(inputs, strip, part, w);
#pragma GCC unroll 4
          for (int row = 0; row < R; ++row) {
#pragma GCC unroll 4
            for (int v = 0; v < 4; ++v) {
              int32_t* sum = sums + row * outputs + strip * kStripOut + v * kPanelOut + part * kLanes;
              hn::Store(AddFour(hn::Load(di, sum), w[v], fours + row * kWordsOfFour), di, sum);
            }
          }
        }
      }
    }
    for (int row = 0; row < R; ++row) {
      const VF x_scale = hn::Set(df, x.scales[row * groups + group]);
      for (int64_t o = 0; o < outputs; o += kLanes) {
        VF of_group = x_scale;
        if constexpr (Type::kGroupScales) {
          of_group = hn::Mul(of_group, LoadFloats(group_scales + o));
        }
        float* total = out + row * outputs + o;
        const VF sum = hn::ConvertTo(df, hn::Load(di, sums + row * outputs + o));
        hn::StoreU(FusedMulAdd(sum, of_group, hn::LoadU(df, total)), df, total);
      }
    }
  }
  if constexpr (!Type::kGroupScales) {
    const float* scales = weight.scales.f32() + block.first_out;
    for (int row = 0; row < R; ++row) {
      for (int64_t o = 0; o < outputs; o += kLanes) {
        float* total = out + row * outputs + o;
        hn::StoreU(hn::Mul(hn::LoadU(df, total), hn::LoadU(df, scales + o)), df, total);
      }
    }
  }
}

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace goldfinch::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // GOLDFINCH_KERNELS_CPU_QUANTIZED_BY_INPUT_INL_H_
