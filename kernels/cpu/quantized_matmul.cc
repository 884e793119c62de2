// Products with quantized weights (kernels/quantize.h).
//
// x is rounded to 8 bits with one scale for each group of 32 inputs. A group's products are summed as integers, which
// is exact; the sums of the groups are multiplied by their scales and added in order, by fused multiply-adds. So an
// output is the same bit for bit whatever rows share the call, and on every instruction set.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/quantized_matmul.cc"
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "hwy/cache_control.h"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "kernels/cpu/epilogue-inl.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/vector-inl.h"
#include "kernels/quantize.h"

#if HWY_TARGET == HWY_AVX3_DL
HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512vnni");  // Highway 1.0.3 has "avxvnni" in its place
#else
HWY_BEFORE_NAMESPACE();
#endif
namespace goldfinch::cpu::HWY_NAMESPACE {
namespace {

using DI = hn::RebindToSigned<DF>;
using VI = hn::Vec<DI>;
using DU8 = hn::Repartition<uint8_t, DF>;
using VU8 = hn::Vec<DU8>;

// AVX-512 VNNI multiplies bytes and adds four products to each sum at once.
constexpr bool kVnni = HWY_TARGET <= HWY_AVX3_DL;
constexpr int kFours = kGroupIn / 4;                            // of neighboring inputs in a group
constexpr int kLanes = static_cast<int>(hn::MaxLanes(DF()));    // of 32 bits
constexpr int kVectors = static_cast<int>(kPanelOut) / kLanes;  // that hold a number for each output of a panel
constexpr int kRows = HWY_TARGET <= HWY_AVX3 ? 12 : HWY_TARGET <= HWY_AVX2 ? 4 : 2;  // of a tile: what registers hold
constexpr int64_t kTaskRows = 516;  // a whole number of tiles; steps of 512 tokens fit
// The hardware alone reads too little ahead where many instructions stand between two loads of weights.
constexpr int64_t kAheadBytes = 4096;
constexpr float kZeroBelow = 0x1p-100f;  // a group with no larger element counts as zeros: 127 / x must be finite

// Four inputs of a row of x: bytes with VNNI, else the 16-bit pairs (0, 2) and (1, 3).
constexpr int kWordsOfFour = kVnni ? 1 : 2;
constexpr int kGroupWords = kFours * kWordsOfFour;

// Rows of x, quantized.
struct Rows {
  int32_t* words;    // [rows, groups, kGroupWords]
  float* scales;     // [rows, groups]
  int32_t* offsets;  // [rows, groups]: what the sum of a group starts from, as weights are stored as q + zero
};

// Fused on every instruction set.
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

// Four inputs as AddFour takes them.
HWY_INLINE void PackFour(const int8_t* values, int32_t* words) {
  if constexpr (kVnni) {
    std::memcpy(words, values, 4);
  } else {
    const int16_t pairs[4] = {values[0], values[2], values[1], values[3]};
    std::memcpy(words, pairs, sizeof(pairs));
  }
}

HWY_INLINE void QuantizeGroup(const float* x, int32_t zero, int32_t* words, float* scale, int32_t* offset) {
  const DF df;
  const DI di;
  VI most = hn::Zero(di);  // of the magnitudes' bits, which are in the order of the magnitudes, NaN last
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

// How weights of one type lie in a panel.
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

// A byte each, as panels are made of rows by inputs.
struct Int4Bytes : Int8 {
  static constexpr int32_t kZero = Int4::kZero;
  static constexpr bool kGroupScales = true;
};

// Some of a row's groups.
struct GroupRange {
  int64_t begin, end, all;
};

// What a product asks for before it needs it, with each group: bytes [begin, end) of a group that lies so far on.
struct Ahead {
  int64_t distance, begin, end;
};

// The groups of a range of a panel, and its scales: of every group at a distance of `scale_stride`, or of all.
struct Panel {
  const uint8_t* weights;  // of group `begin`
  const void* scales;      // of group 0
  int64_t scale_stride;
  Ahead ahead;
};

// out[r * stride + i] = row r of x times output i of a panel, for R rows. Ranges follow each other up to the last
// group: each goes on from what the one before has left in `out`.
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

// As many rows at once as are left, of the counts that there are tiles for.
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

// --- Weights that lie by inputs -------------------------------------------------------------------------------------

constexpr int kStripVectors = static_cast<int>(kStripOut) / (4 * kLanes);  // of bytes, in a strip of an input

// Part `part` of a strip of four inputs, whose rows begin at `rows`, as the panels' vectors: to[v] is of panel v.
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

// Input i of a quantized group.
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
constexpr int64_t kRowStrips = 1032;       // of a task: sums of 258 KiB
constexpr int64_t kPartStripGroups = 128;  // of weights that are made panels at once: 256 KiB
constexpr int64_t kAheadInputs = 16;

// Outputs that lie by inputs: a block, or some strips of it.
struct Block {
  const uint8_t* weights;  // of input 0
  int64_t row_bytes;       // from an input to the next
  int64_t run_bytes;       // of an input
  int64_t first_out;
  int64_t strips;
};

// Part `index` of equal ones, each of an even number of strips, as two may share their bytes.
Block BlockOf(const Matrix& weight, int64_t strips, int64_t index) {
  const int64_t out = weight.out(), block = ByInputBlock(out),
                row_bytes = weight.data.bytes() / weight.in() / (out / block);
  const int64_t first_out = index * strips * kStripOut, run_bytes = row_bytes * strips * kStripOut / block;
  const int64_t offset = first_out / block * weight.in() * row_bytes + first_out % block * row_bytes / block;
  return {static_cast<const uint8_t*>(weight.data.data) + offset, row_bytes, run_bytes, first_out, strips};
}

// From one panel of so many groups that is made to the next: a power of two would put all into the same cache sets.
constexpr int64_t MadeBytes(int64_t groups) { return groups * kGroupIn * kPanelOut + 64; }

// Groups of a block as panels, at a distance of MadeBytes.
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

constexpr int64_t kSparseRows = 4;  // more are multiplied faster by panels, with their zeros

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
      for (int i = 0; i < 4; ++i) {  // past the end the first again, times zero
        inputs[i] = group_rows + now.inputs[begin + i < now.count ? begin + i : begin] * block.row_bytes;
      }
      for (int row = 0; row < R; ++row) {
        const int32_t* words = x.words + (row * groups + group) * kGroupWords;
        int8_t values[4] = {};
        for (int i = 0; i < std::min(4, now.count - begin); ++i) values[i] = InputOf(words, now.inputs[begin + i]);
        PackFour(values, fours + row * kWordsOfFour);
      }
      // The hardware reads ahead what follows, not what will be needed.
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

// Held by `shared` while all threads read them.
template <class Type>
Rows QuantizeRows(Context& context, ConstTensor x, Scratch& shared) {
  const int64_t rows = x.dim(0), groups = x.dim(1) / kGroupIn;
  Rows quantized;
  quantized.words = reinterpret_cast<int32_t*>(shared.Floats(rows * groups * kGroupWords));
  quantized.scales = shared.Floats(rows * groups);
  quantized.offsets = reinterpret_cast<int32_t*>(shared.Floats(rows * groups));
  context.pool.ParallelFor(
      rows,
      [&](int64_t row, int) HWY_ATTR {
        for (int64_t group = row * groups; group < (row + 1) * groups; ++group) {
          QuantizeGroup(x.f32() + group * kGroupIn, Type::kZero, quantized.words + group * kGroupWords,
                        quantized.scales + group, quantized.offsets + group);
        }
      },
      x.dim(1));
  return quantized;
}

// What the tile at `row` of a task's rows asks for ahead: the first reads its own panel from memory; the others share
// the panel that stands at the same place in what this thread is likely to be given next, `next` bytes on.
Ahead AheadOf(int64_t row, int64_t rows, int64_t next, int64_t group_bytes) {
  if (row == 0) return {kAheadBytes, 0, group_bytes};
  const int64_t parts = std::max<int64_t>(1, (rows - 1) / kRows);
  const int64_t part_bytes = (group_bytes / 64 + parts - 1) / parts * 64, begin = (row - 1) / kRows * part_bytes;
  return {next, begin, next == 0 ? begin : std::min(begin + part_bytes, group_bytes)};
}

template <class Type>
void Product(Context& context, ConstTensor x, const Matrix& weight, const Epilogue& epilogue, Tensor out) {
  const int64_t rows = x.dim(0), in = weight.in(), width = weight.out(), groups = in / kGroupIn;
  Scratch& shared = context.scratch[0];
  const Scratch::Frame shared_frame(shared);
  const Rows quantized = QuantizeRows<Type>(context, x, shared);

  const bool by_input = weight.layout == Matrix::Layout::kInOut;
  // Of a task. Long runs are read faster, but every thread must have work, and the sums of many rows must fit a cache.
  int64_t strips = by_input ? ByInputBlock(width) / kStripOut : 1;
  while (strips > 2 && (width / (strips * kStripOut) < 2 * context.pool.threads() ||
                        strips * std::min(rows, kTaskRows) > kRowStrips)) {
    strips /= 2;
  }
  const int64_t task_out = strips * kStripOut;
  if (by_input && rows <= kSparseRows) {
    context.pool.ParallelFor(
        width / task_out,
        [&](int64_t task, int) HWY_ATTR {
          const Block block = BlockOf(weight, strips, task);
          HWY_ALIGN float sums[kSparseRows * kBlockStripsMax * kStripOut];
          const auto multiply = rows == 1   ? SparseRows<Type, 1>
                                : rows == 2 ? SparseRows<Type, 2>
                                : rows == 3 ? SparseRows<Type, 3>
                                            : SparseRows<Type, kSparseRows>;
          multiply(quantized, groups, weight, block, sums);
          for (int64_t row = 0; row < rows; ++row) {
            FinishRow(sums + row * task_out, epilogue, row, block.first_out, task_out, out);
          }
        },
        rows * in * task_out / 4);
    return;
  }

  // Narrow weights are cut by rows as well, so that every thread has work.
  const int64_t out_tasks = (width + task_out - 1) / task_out;
  int64_t task_rows = std::min(rows, kTaskRows);
  while (task_rows > 8 * kRows && out_tasks * ((rows + task_rows - 1) / task_rows) < 4 * context.pool.threads()) {
    task_rows = (task_rows / 2 + kRows - 1) / kRows * kRows;
  }
  const int64_t row_tasks = (rows + task_rows - 1) / task_rows;
  const int64_t part_groups = by_input ? std::min(groups, kPartStripGroups / strips) : groups;
  const auto* weights = static_cast<const uint8_t*>(weight.data.data);
  const auto* scales = static_cast<const char*>(weight.scales.data);
  const int64_t panels = width / kPanelOut, panel_bytes = groups * Type::kGroupBytes;
  const int64_t panel_scales = by_input ? kPanelOut * SizeOf(weight.scales.dtype) : weight.scales.bytes() / panels;
  context.pool.ParallelFor(
      out_tasks * row_tasks,
      [&](int64_t task, int thread) HWY_ATTR {
        Scratch& scratch = context.scratch[thread];
        const Scratch::Frame frame(scratch);
        const int64_t first_out = task % out_tasks * task_out, outputs = std::min(task_out, width - first_out);
        const int64_t first_row = task / out_tasks * task_rows, task_end = std::min(rows, first_row + task_rows);
        const int64_t next_panels = task_out / kPanelOut * context.pool.threads();
        float* sums = scratch.Floats((task_end - first_row) * outputs);
        uint8_t* made = nullptr;
        if (by_input) {
          made = reinterpret_cast<uint8_t*>(scratch.Floats(outputs / kPanelOut * MadeBytes(part_groups) / 4));
        }
        // The tile of rows from `row` on with one panel; returns how many rows.
        const auto tile = [&](int64_t row, int64_t panel, const GroupRange& range) HWY_ATTR {
          using Made = std::conditional_t<Type::kGroupScales, Int4Bytes, Int8>;
          float* to = sums + (row - first_row) * outputs + panel * kPanelOut - first_out;
          const char* of_panel = scales + panel * panel_scales;
          if (by_input) {
            const int64_t place = (panel - first_out / kPanelOut) * MadeBytes(range.end - range.begin);
            return Tile<Made>(task_end - row, quantized, row, range, {made + place, of_panel, width, {}}, to, outputs);
          }
          const int64_t next = panel + next_panels < panels ? next_panels * panel_bytes : 0;
          const Ahead ahead = AheadOf(row - first_row, task_end - first_row, next, Type::kGroupBytes);
          return Tile<Type>(task_end - row, quantized, row, range,
                            {weights + panel * panel_bytes, of_panel, kPanelOut, ahead}, to, outputs);
        };
        for (GroupRange range{0, part_groups, groups}; range.begin < groups;) {
          if (by_input) MakePanels<Type>(BlockOf(weight, strips, task % out_tasks), range, made);
          for (int64_t row = first_row; row < task_end;) {
            int64_t count = 0;
            for (int64_t o = first_out; o < first_out + outputs; o += kPanelOut)
              count = tile(row, o / kPanelOut, range);
            for (int64_t r = row; r < row + count && range.end == groups; ++r) {
              FinishRow(sums + (r - first_row) * outputs, epilogue, r, first_out, outputs, out);
            }
            row += count;
          }
          range.begin = range.end;
          range.end = std::min(groups, range.begin + part_groups);
        }
      },
      task_rows * in * task_out / 4);
}

void QuantizedMatMulTarget(Context& context, ConstTensor x, Matrix weight, const Epilogue& epilogue, Tensor out) {
  if (x.dim(0) == 0) return;
  if (weight.data.dtype == DType::kInt8) {
    Product<Int8>(context, x, weight, epilogue, out);
  } else {
    Product<Int4>(context, x, weight, epilogue, out);
  }
}

}  // namespace

// NOLINTNEXTLINE(google-readability-namespace-comments)
}  // namespace goldfinch::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace goldfinch::cpu {
HWY_EXPORT(QuantizedMatMulTarget);

void QuantizedMatMul(Context& context, ConstTensor x, Matrix weight, const Epilogue& epilogue, Tensor out) {
  HWY_DYNAMIC_DISPATCH(QuantizedMatMulTarget)(context, x, weight, epilogue, out);
}

}  // namespace goldfinch::cpu
#endif
