// Attention over the compressed cache: keys and values of a chunk of positions are rebuilt into scratch memory and
// attended to (attend.h), one chunk after the other, so that what is rebuilt stays in the L2 cache.
//
// There are two ways to rebuild. The fused one (gold_rebuild.h) is for 16-bit types and the sizes of real models; the
// other, products by the matrix library with plain kernels between them and every intermediate in fp32, is for the
// rest.
//
// What tier T2 keeps is filled here, too, by the same kernels; gold_kept.cu attends to it, but for types and sizes that
// it cannot do, which go the plain way from kept rows.
//
// Counted for one layer and position, D = 2048, ranks m = 32 and m' = 64, bf16, fused, blocks of 64 rows:
//                                           device memory    L2 cache, both ways
//   Prepare  embedding row, mix rows, c            4.8 KB     9 KB
//   Key      table row; c, W_c (512 KB a block)    4          4 + 4 + 8, writes 4
//   Down     kk, xo; weights (768 KB a block)                 8 + 12, partial sums 4
//   Up       kk, xo; weights (768 KB a block)                 8 + 12 + 2, writes 8
//   attend   k, v                                             8.5
//   together                                       8.8 KB     92 KB
// and 2.1 MFLOP: c W_c 0.52, the mix twice 0.52, the LoRAs 1.05; attention of 16 rows 0.13 more. For 2^20 positions
// that is 3.2 ms of device memory (2.9 TB/s), 5.5 ms of the matrix units (400 TFLOP/s by mma.sync), and 17.5 ms of the
// L2 cache (5.5 TB/s), which it is bound by; 331 chunks of 3168 positions with 6 kernels each add some 18 us a chunk
// between kernels, 6 ms. The prediction:
//     32k positions  0.75 ms     T3 0.11 ms (kv_attention.cu)
//     128k           3.0 ms      T3 0.42 ms
//     1M             24 ms       T3 3.3 ms
// with up to 16 query rows alike, so that the GOLD layers of a prompt's tail, 8 layers of 9 rows, take 190 ms over 1M
// positions; the plain way moves some 190 KB a position through device memory and would take 8 * 70 ms.
//
// What that says of the aims (T0 within 1.5 times T3, the tail within 60 ms): the rows by id that the interface reads,
// embedding, key table and mix table, are 8.8 KB a position and T3's keys and values 8.2 KB, so 1.09 times T3 is the
// floor, and 1.5 times leaves 1.8 ms for everything else, with 3.2 ms of products (at 600 TFLOP/s) to be hidden behind
// the reading. No intermediate may then leave the multiprocessor: 16 blocks of a cluster with 128 columns and all their
// weights each (112 KB of shared memory), and sums over columns by distributed shared memory three times a tile. At
// some 5 us a tile of 64 positions and 8 clusters that would be 10 ms, 3 times T3 and 80 ms for the tail: 1.5 times
// cannot be met from ids and c alone. Tier T2 (gold_kept.cu) keeps kk and the LoRAs' tanh rows, so that the key table,
// W_c and both down sides fall away.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/gold_rebuild.h"
#include "kernels/cuda/gold_rows.h"
#include "kernels/cuda/gold_shared.h"
#include "kernels/cuda/ops.h"

namespace goldfinch::cuda {
namespace {

constexpr int64_t kChunkBytes = int64_t{64} << 20;  // of scratch for a chunk's rows, about
// Positions of a chunk, by multiprocessor.
constexpr int64_t kPlainPositions = 16;
constexpr int64_t kFusedPositions = 24;

// Positions that follow each other in a span, as rows of a chunk: first the position before them, which the shift looks
// back to, then they.
struct Segment {
  int32_t span;  // -1: rows that fill up the chunk
  int32_t row_begin;
  int64_t position;  // of the row `row_begin`: -1 before the first of all
};

// Where ids are: in the compressed cache, or in rows that are kept.
template <typename Id>
struct CacheIds {
  const Id* ids;
  int64_t page_tokens;
  int64_t kept_tokens;  // 0: nothing is kept

  __device__ int64_t Stored(const DeviceSpan& span, int64_t position) const {
    return span.pages[position / page_tokens] * page_tokens + position % page_tokens;
  }
  __device__ int64_t Kept(const DeviceSpan& span, int64_t position) const {
    return kept_tokens == 0 ? -1 : span.kept[position / kept_tokens] * kept_tokens + position % kept_tokens;
  }
  __device__ int32_t At(int64_t stored) const { return static_cast<int32_t>(ids[stored]); }
};
struct KeptIds {
  SharedPages pages;

  __device__ int64_t Stored(const DeviceSpan& span, int64_t position) const {
    return span.kept[position / pages.page_tokens] * pages.page_tokens + position % pages.page_tokens;
  }
  __device__ int64_t Kept(const DeviceSpan& span, int64_t position) const { return Stored(span, position); }
  __device__ int32_t At(int64_t stored) const { return pages.Input(stored)->id; }
};

template <typename Ids>
__global__ void LocateKernel(const Segment* segments, int count, int rows, const DeviceSpan* spans, Ids ids,
                             ChunkRow* to) {
  const int row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (row >= rows) return;
  int low = 0, high = count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (segments[middle].row_begin <= row) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const Segment segment = segments[low];
  if (segment.span < 0) {
    to[row] = {-1, -1, -1, -1, -1, 1};
    return;
  }
  const DeviceSpan& span = spans[segment.span];
  const auto stored = [&](int64_t position) { return position < 0 ? -1 : ids.Stored(span, position); };
  ChunkRow result;
  result.position = segment.position + row - segment.row_begin;
  result.stored = stored(result.position);
  result.id = result.stored < 0 ? -1 : ids.At(result.stored);
  result.only_before = row == segment.row_begin ? 1 : 0;
  const int64_t before = row == segment.row_begin ? -1 : stored(result.position - 1);
  result.prev_id = before < 0 ? -1 : ids.At(before);
  result.kept = result.only_before != 0 ? -1 : ids.Kept(span, result.position);
  to[row] = result;
}

// xo = rms(LN0(emb[id])), zeros at position -1.
template <typename Emb>
__global__ void __launch_bounds__(kRowThreads)
    InputKernel(const ChunkRow* rows, const Emb* embedding, const float* weight, const float* bias, int64_t width,
                float* xo) {
  float* scratch = DynamicShared<float>();  // [kWarp]
  const int64_t row = blockIdx.x;
  const int32_t id = rows[row].id;
  float* to = xo + row * width;
  if (id < 0) {
    for (int64_t i = threadIdx.x; i < width; i += kRowThreads) to[i] = 0;
    return;
  }
  const Emb* from = embedding + id * width;
  const InputRow input = InputRowOf(from, weight, bias, width, scratch);
  for (int64_t i = threadIdx.x; i < width; i += kRowThreads) {
    to[i] = input.Normed(ToFloat(from[i]), weight[i], bias[i]) * input.rms_scale;
  }
}

// The compressed rows, zeros at position -1.
template <typename To>
__global__ void __launch_bounds__(kRowThreads) CompressedKernel(const ChunkRow* rows, CompressedRows cache, To* to) {
  const int64_t row = blockIdx.x, stored = rows[row].stored;
  for (int64_t i = threadIdx.x; i < cache.width; i += kRowThreads) {
    to[row * cache.width + i] = FromFloat<To>(stored < 0 ? 0.f : cache.At(stored, i));
  }
}

// kk = rms(kk + table[id]), zeros at position -1.
template <typename Act>
__global__ void __launch_bounds__(kRowThreads)
    KeyRowKernel(const ChunkRow* rows, const Act* table, int64_t width, float* kk) {
  float* scratch = DynamicShared<float>();  // [kWarp]
  const int32_t id = rows[blockIdx.x].id;
  if (id < 0) return;  // zero already: c was
  float* x = kk + blockIdx.x * width;
  float square = 0;
  for (int64_t i = threadIdx.x; i < width; i += kRowThreads) {
    x[i] += ToFloat(table[id * width + i]);
    square += x[i] * x[i];
  }
  const float scale = RmsScale(BlockSum(square, scratch), width);
  for (int64_t i = threadIdx.x; i < width; i += kRowThreads) x[i] *= scale;
}

// The tanh rows of the mix LoRA. Its input is linear in xo and prev(xo), and so the sum of two rows of the table.
template <typename To>
__global__ void HiddenKernel(const ChunkRow* rows, int64_t count, const float* table, int64_t width, To* hidden) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i >= count * width) return;
  const ChunkRow row = rows[i / width];
  float x = 0;
  if (row.id >= 0) x += table[2 * row.id * width + i % width];
  if (row.prev_id >= 0) x += table[(2 * int64_t{row.prev_id} + 1) * width + i % width];
  hidden[i] = FromFloat<To>(tanhf(x));
}

struct MixSide {
  const float* x;    // [rows, D]: kk or xo
  const float* mix;  // [D]
  float* to;         // [rows, D]: the LoRA's part of the amount before, what is mixed after
  void* rounded;     // the same in the weights' type
};

// to = x + (prev(x) - x) * (mix + to). Rows that have none before them, of the chunk, are not used.
template <typename To>
__global__ void __launch_bounds__(kRowThreads) MixKernel(MixSide key, MixSide value, int64_t width) {
  const MixSide side = blockIdx.y == 0 ? key : value;
  const int64_t row = blockIdx.x, at = row * width;
  To* rounded = static_cast<To*>(side.rounded);
  for (int64_t i = threadIdx.x; i < width; i += kRowThreads) {
    const float x = side.x[at + i], before = row == 0 ? 0.f : side.x[at - width + i];
    const float mixed = x + (before - x) * (side.mix[i] + side.to[at + i]);
    side.to[at + i] = mixed;
    rounded[at + i] = FromFloat<To>(mixed);
  }
}

template <typename To>
__global__ void TanhKernel(const float* from, int64_t count, To* to) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < count) to[i] = FromFloat<To>(tanhf(from[i]));
}

struct FinishSide {
  const void* x;  // [rows, D] of From
  const float* weight;
  const float* bias;
  void* to;
};

// LayerNorm, rotation of keys, rounding; to the same row of `to`, which may be x, or into pages: where the row is kept.
template <typename From, typename To>
__global__ void __launch_bounds__(kRowThreads)
    FinishKernel(const ChunkRow* rows, FinishSide key, FinishSide value, int64_t width, int head_size, double rope_base,
                 bool into_pages) {
  float* scratch = DynamicShared<float>();  // [kWarp]
  const bool is_key = blockIdx.y == 0;
  const FinishSide side = is_key ? key : value;
  const int64_t row = blockIdx.x;
  if (rows[row].only_before != 0) return;
  const From* x = static_cast<const From*>(side.x) + row * width;
  const RowMoments moments = MomentsOf(width, scratch, [x](int64_t i) { return ToFloat(x[i]); });
  const auto normed = [&](int64_t i) {
    return (ToFloat(x[i]) - moments.mean) * moments.scale * side.weight[i] + side.bias[i];
  };
  To* to = static_cast<To*>(side.to) + (into_pages ? rows[row].kept : row) * width;
  if (!is_key || rope_base == 0) {
    for (int64_t i = threadIdx.x; i < width; i += kRowThreads) to[i] = FromFloat<To>(normed(i));
    return;
  }
  for (int64_t i = 2 * int64_t{threadIdx.x}; i < width; i += 2 * kRowThreads) {
    // In double: at position 10^6 an fp32 angle has lost its fraction.
    const double angle = static_cast<double>(rows[row].position) *
                         pow(rope_base, -static_cast<double>(i % head_size) / static_cast<double>(head_size));
    const auto cosine = static_cast<float>(cos(angle)), sine = static_cast<float>(sin(angle));
    const float a = normed(i), b = normed(i + 1);
    to[i] = FromFloat<To>(a * cosine - b * sine);
    to[i + 1] = FromFloat<To>(a * sine + b * cosine);
  }
}

// --- Kept rows (tier T2) --------------------------------------------------------------------------------------------

// What all layers share, of one row: kk, scaled where its squares by blocks of columns are given (then in place, too),
// the id, and the statistics of xo.
template <typename Kk, typename Emb, typename Act>
__global__ void __launch_bounds__(kRowThreads)
    KeepInputsKernel(const ChunkRow* rows, Kk* kk, const float* squares, int square_blocks, const Emb* embedding,
                     const float* weight, const float* bias, int64_t width, SharedPages pages) {
  float* scratch = DynamicShared<float>();  // [kWarp]
  const int64_t row = blockIdx.x;
  const ChunkRow at = rows[row];
  float scale = 1;
  if (squares != nullptr) {
    float square = 0;
    for (int i = 0; i < square_blocks; ++i) square += squares[int64_t{i} * gridDim.x + row];
    scale = RmsScale(square, width);
  }
  Kk* const x = kk + row * width;
  Act* const to = at.kept < 0 ? nullptr : pages.Key<Act>(at.kept, width);
  for (int64_t i = threadIdx.x; i < width; i += kRowThreads) {
    const float value = ToFloat(x[i]) * scale;
    if (squares != nullptr) x[i] = FromFloat<Kk>(value);
    if (to != nullptr) to[i] = FromFloat<Act>(value);
  }
  if (to == nullptr) return;
  const InputRow input = InputRowOf(embedding + at.id * width, weight, bias, width, scratch);
  if (threadIdx.x != 0) return;
  const float factor = input.moments.scale * input.rms_scale;
  *pages.Input(at.kept) = {factor, input.moments.mean * factor, input.rms_scale, at.id};
}

// Tanh rows of one layer, of one row of a chunk: in parts, as they lie in a page.
struct TanhPart {
  void* data;  // [rows, width]
  int width;
};
struct TanhParts {
  TanhPart parts[3];  // of the mix, key and value LoRAs
};

// To the pages, with the factors if they are there.
template <typename From, typename Act>
__global__ void __launch_bounds__(kRowThreads)
    KeepTanhKernel(const ChunkRow* rows, TanhParts from, const float* factors, SharedPages pages) {
  const int64_t row = blockIdx.x, kept = rows[row].kept;
  if (kept < 0) return;
  Act* to = pages.Tanh<Act>(kept);
  for (const TanhPart& part : from.parts) {
    const From* data = static_cast<const From*>(part.data) + row * part.width;
    for (int i = static_cast<int>(threadIdx.x); i < part.width; i += kRowThreads) {
      to[i] = FromFloat<Act>(ToFloat(data[i]));
    }
    to += part.width;
  }
  if (factors != nullptr && threadIdx.x < 4) pages.Factors(kept)[threadIdx.x] = factors[4 * row + threadIdx.x];
}

// From the pages: kk, zeros at position -1, and the tanh rows of rows that are not only looked back to.
template <typename Act, typename To>
__global__ void __launch_bounds__(kRowThreads)
    TakeKernel(const ChunkRow* rows, SharedPages pages, int64_t width, float* kk, TanhParts to) {
  const int64_t row = blockIdx.x;
  const ChunkRow at = rows[row];
  const Act* from = at.stored < 0 ? nullptr : pages.Key<Act>(at.stored, width);
  for (int64_t i = threadIdx.x; i < width; i += kRowThreads) {
    kk[row * width + i] = from == nullptr ? 0.f : ToFloat(from[i]);
  }
  const Act* tanh_row = at.only_before != 0 ? nullptr : pages.Tanh<Act>(at.stored);
  for (const TanhPart& part : to.parts) {
    To* data = static_cast<To*>(part.data) + row * part.width;
    for (int i = static_cast<int>(threadIdx.x); i < part.width; i += kRowThreads) {
      data[i] = FromFloat<To>(tanh_row == nullptr ? 0.f : ToFloat(tanh_row[i]));
    }
    if (tanh_row != nullptr) tanh_row += part.width;
  }
}

// --- The host's side ------------------------------------------------------------------------------------------------

// A run of positions to be rebuilt.
struct Piece {
  int span;
  int64_t begin;
  int64_t end;
};

// The spans' own positions.
std::vector<Piece> PiecesOf(RowSpans spans) {
  std::vector<Piece> pieces;
  for (int i = 0; i < static_cast<int>(spans.size()); ++i) {
    pieces.push_back({i, spans[i].position, spans[i].position + spans[i].row_count});
  }
  return pieces;
}

// Cuts the runs into chunks of at most so many positions.
std::vector<std::vector<Piece>> CutChunks(const std::vector<Piece>& pieces, int64_t positions) {
  std::vector<std::vector<Piece>> chunks;
  int64_t left = 0;
  for (Piece piece : pieces) {
    while (piece.begin < piece.end) {
      if (left == 0) {
        chunks.emplace_back();
        left = positions;
      }
      const int64_t count = std::min(left, piece.end - piece.begin);
      chunks.back().push_back({piece.span, piece.begin, piece.begin + count});
      piece.begin += count;
      left -= count;
    }
  }
  return chunks;
}

// A number of rows that is the next one for many tokens, an eighth more at most where there are many.
int64_t FilledRows(int64_t rows) {
  constexpr int64_t kLeast = 32;
  const int64_t step = std::max(kLeast, PowerOfTwoFrom(rows) / 16);
  return CeilDiv(rows, step) * step;
}

bool Steady(RowSpans spans) {
  return std::all_of(spans.begin(), spans.end(), [](const RowSpan& span) { return span.row_count == 1; });
}

// Rebuilds keys and values of one layer, a chunk at a time.
class Rebuilder {
 public:
  // From the compressed cache; chunks know where rows are kept if `kept_tokens` is not 0. `steady`: chunks are filled
  // up, so that launches stay the same over many a token of a decode step.
  Rebuilder(Context& context, const DeviceSpan* spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
            const GoldCache& cache, int64_t kept_tokens, int head_size, bool steady)
      : Rebuilder(context, spans, shared, weights, head_size, CanFuse(shared, weights, head_size), steady) {
    cache_ = &cache;
    kept_tokens_ = kept_tokens;
  }
  // From kept rows.
  Rebuilder(Context& context, const DeviceSpan* spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
            const SharedPages& pages, int head_size, bool steady)
      : Rebuilder(context, spans, shared, weights, head_size, /*fused=*/false, steady) {
    pages_ = &pages;
  }

  // Norms are left to attention.
  bool LeavesNorms() const { return fused_ && weights_.rope_base == 0; }
  // Positions of a chunk: few enough for the scratch, enough to keep all multiprocessors at work.
  int64_t ChunkPositions() const {
    const int64_t wanted = (fused_ ? kFusedPositions : kPlainPositions) * context_.multiprocessors();
    return std::max<int64_t>(16, std::min(wanted, kChunkBytes / ((fused_ ? 9 : 32) * width_)));
  }

  // Rows of a chunk, in scratch memory.
  struct Rows {
    int64_t count = 0;
    const ChunkRow* located = nullptr;
    void* sides[2] = {};  // [count, D]: keys and values before their norms
    DType dtype = DType::kF32;
    float* factors = nullptr;  // as StoredKeys::row_factors, if norms are left
  };

  // Valid until the caller's frame ends.
  Rows Rebuild(const std::vector<Piece>& chunk) {
    Rows rows;
    rows.located = Locate(chunk, rows.count);
    if (fused_) rows.dtype = shared_.embedding.dtype;
    for (void*& side : rows.sides) side = context_.Scratch(rows.count * width_ * SizeOf(rows.dtype));
    if (LeavesNorms()) rows.factors = context_.Scratch<float>(4 * rows.count);
    const Context::Frame frame(context_);
    if (fused_) {
      VisitHalfType(rows.dtype, [&](auto tag) {
        using T = typename decltype(tag)::type;
        const FusedInputs inputs =
            MakeFusedInputs<T>(rows.located, rows.count, weights_.mix_table.f32(), 2 * weights_.mix_up.dim(1), 1);
        FusedSides<T>(rows, inputs, inputs.hidden, inputs.counters);
      });
      return rows;
    }
    auto* xo = context_.Scratch<float>(rows.count * width_);
    auto* kk = context_.Scratch<float>(rows.count * width_);
    float* const mixed[2] = {static_cast<float*>(rows.sides[0]), static_cast<float*>(rows.sides[1])};
    MakeXo(rows.located, rows.count, xo);
    if (pages_ == nullptr) MakeKk(rows.located, rows.count, kk);
    VisitFloatType(weights_.key_down.data.dtype, [&](auto tag) {
      using Weight = typename decltype(tag)::type;
      const TanhParts tanh_rows = NewTanhRows<Weight>(rows.count);
      if (pages_ == nullptr) {
        MakeMixTanh<Weight>(rows.located, rows.count, tanh_rows);
      } else {
        VisitFloatType(context_.activation_dtype(), [&](auto act_tag) {
          using Act = typename decltype(act_tag)::type;
          Launch(stream(), TakeKernel<Act, Weight>, RowShape(rows.count), rows.located, *pages_, width_, kk, tanh_rows);
        });
      }
      MakeSides<Weight>(rows.count, kk, xo, tanh_rows, /*take_tanh=*/pages_ != nullptr, mixed);
      MakeUp<Weight>(rows.count, tanh_rows, mixed);
    });
    return rows;
  }

  // What tier T2 keeps of the chunk, for `layers`, of which this rebuilder has one; pages[i] is of layers[i].
  void Keep(const std::vector<Piece>& chunk, absl::Span<const GoldKvWeights> layers,
            absl::Span<const SharedPages> pages) {
    const Context::Frame frame(context_);
    int64_t count = 0;
    const ChunkRow* located = Locate(chunk, count);
    const auto each_layer = [&](auto use) {
      for (size_t i = 0; i < layers.size(); ++i) {
        const Context::Frame layer_frame(context_);
        Rebuilder layer(context_, spans_, shared_, layers[i], *cache_, kept_tokens_, head_size_, steady_);
        use(layer, pages[i], static_cast<int>(i));
      }
    };
    const auto keep_inputs = [&](auto* kk, const float* squares, int square_blocks) {
      using Kk = std::remove_pointer_t<decltype(kk)>;
      VisitFloatType(shared_.embedding.dtype, [&](auto tag) {
        VisitFloatType(context_.activation_dtype(), [&](auto act_tag) {
          using Emb = typename decltype(tag)::type;
          using Act = typename decltype(act_tag)::type;
          Launch(stream(), KeepInputsKernel<Kk, Emb, Act>, RowShape(count), located, kk, squares, square_blocks,
                 static_cast<const Emb*>(shared_.embedding.data), shared_.ln0.weight.f32(), shared_.ln0.bias.f32(),
                 width_, pages[0]);
        });
      });
    };
    const bool fused = std::all_of(layers.begin(), layers.end(),
                                   [&](const GoldKvWeights& weights) { return CanFuse(shared_, weights, head_size_); });
    if (fused) {
      VisitHalfType(shared_.embedding.dtype, [&](auto tag) {
        using T = typename decltype(tag)::type;
        FusedInputs inputs = MakeFusedInputs<T>(located, count, nullptr, 0, static_cast<int>(layers.size()));
        keep_inputs(static_cast<T*>(inputs.kk), inputs.squares, static_cast<int>(width_ / kKeyColumns));
        inputs.squares = nullptr;  // kk is scaled
        each_layer([&](Rebuilder& layer, const SharedPages& to, int index) {
          const auto mix_width = static_cast<int>(2 * layer.weights_.mix_up.dim(1));
          Rows rows{.count = count, .located = located, .dtype = DTypeOf<T>()};
          for (void*& side : rows.sides) side = context_.Scratch(count * width_ * SizeOf(rows.dtype));
          rows.factors = context_.Scratch<float>(4 * count);
          TanhParts parts{{{context_.Scratch<T>(count * mix_width), mix_width}}};
          layer.MakeMixTanh<T>(located, count, parts);
          const LoraArguments made =
              layer.FusedSides<T>(rows, inputs, parts.parts[0].data, inputs.counters + index * CounterCount(count));
          for (int side = 0; side < 2; ++side) parts.parts[1 + side] = {made.sides[side].activated, made.lora_rank};
          Launch(stream(), KeepTanhKernel<T, T>, RowShape(count), located, parts, rows.factors, to);
        });
      });
      return;
    }
    auto* xo = context_.Scratch<float>(count * width_);
    auto* kk = context_.Scratch<float>(count * width_);
    MakeXo(located, count, xo);
    MakeKk(located, count, kk);
    keep_inputs(kk, nullptr, 0);
    float* const mixed[2] = {context_.Scratch<float>(count * width_), context_.Scratch<float>(count * width_)};
    each_layer([&](Rebuilder& layer, const SharedPages& to, int) {
      VisitFloatType(layer.weights_.key_down.data.dtype, [&](auto tag) {
        VisitFloatType(context_.activation_dtype(), [&](auto act_tag) {
          using Weight = typename decltype(tag)::type;
          using Act = typename decltype(act_tag)::type;
          const TanhParts tanh_rows = layer.NewTanhRows<Weight>(count);
          layer.MakeMixTanh<Weight>(located, count, tanh_rows);
          layer.MakeSides<Weight>(count, kk, xo, tanh_rows, /*take_tanh=*/false, mixed);
          Launch(stream(), KeepTanhKernel<Weight, Act>, RowShape(count), located, tanh_rows,
                 static_cast<const float*>(nullptr), to);
        });
      });
    });
  }

  // Norms and rotates rows, to where they are in the cache or to the same rows of `keys` and `values`.
  void Finish(const Rows& rows, void* keys, void* values, DType dtype, bool into_pages) {
    VisitFloatType(rows.dtype, [&](auto from_tag) {
      VisitFloatType(dtype, [&](auto to_tag) {
        using From = typename decltype(from_tag)::type;
        using To = typename decltype(to_tag)::type;
        LaunchShape shape = RowShape(rows.count);
        shape.grid.y = 2;
        Launch(stream(), FinishKernel<From, To>, shape, rows.located,
               FinishSide{rows.sides[0], weights_.ln_key.weight.f32(), weights_.ln_key.bias.f32(), keys},
               FinishSide{rows.sides[1], weights_.ln_value.weight.f32(), weights_.ln_value.bias.f32(), values}, width_,
               head_size_, weights_.rope_base, into_pages);
      });
    });
  }

 private:
  Rebuilder(Context& context, const DeviceSpan* spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
            int head_size, bool fused, bool steady)
      : context_(context),
        spans_(spans),
        steady_(steady),
        shared_(shared),
        weights_(weights),
        head_size_(head_size),
        width_(shared.embedding.dim(1)),
        fused_(fused) {}

  Stream stream() const { return static_cast<Stream>(context_.stream()); }
  template <typename Use>
  static void VisitHalfType(DType dtype, Use use) {
    if (dtype == DType::kF16) {
      use(TypeTag<f16_t>());
    } else {
      use(TypeTag<bf16_t>());
    }
  }
  // One element a thread.
  static LaunchShape ElementShape(int64_t count) {
    return {dim3(static_cast<unsigned>(CeilDiv<int64_t>(count, kRowThreads))), dim3(kRowThreads)};
  }

  // Rows of a chunk, and their number.
  const ChunkRow* Locate(const std::vector<Piece>& chunk, int64_t& count) {
    std::vector<Segment> segments;
    count = 0;
    for (const Piece& piece : chunk) {
      segments.push_back({piece.span, static_cast<int32_t>(count), piece.begin - 1});
      count += 1 + piece.end - piece.begin;
    }
    if (steady_) {
      const int64_t filled = PowerOfTwoFrom(static_cast<int64_t>(segments.size()) + 1);
      const int64_t rows_max = ChunkPositions() + filled;
      segments.resize(filled, {-1, static_cast<int32_t>(count), 0});
      count = std::min(FilledRows(count), rows_max);
    }
    const Segment* device_segments = context_.UploadShared(absl::MakeConstSpan(segments));
    auto* located = context_.Scratch<ChunkRow>(count);
    const auto locate = [&](auto ids) {
      Launch(stream(), LocateKernel<decltype(ids)>, ElementShape(count), device_segments,
             static_cast<int>(segments.size()), static_cast<int>(count), spans_, ids, located);
    };
    if (pages_ != nullptr) {
      locate(KeptIds{*pages_});
    } else if (cache_->ids.dtype == DType::kU16) {
      locate(CacheIds<uint16_t>{static_cast<const uint16_t*>(cache_->ids.data), cache_->page_tokens(), kept_tokens_});
    } else {
      locate(CacheIds<int32_t>{static_cast<const int32_t*>(cache_->ids.data), cache_->page_tokens(), kept_tokens_});
    }
    return located;
  }

  CompressedRows Compressed() const { return {cache_->c.data, cache_->c.dtype, shared_.key_compressed.in()}; }

  void MakeXo(const ChunkRow* located, int64_t rows, float* xo) {
    VisitFloatType(shared_.embedding.dtype, [&](auto tag) {
      using Emb = typename decltype(tag)::type;
      Launch(stream(), InputKernel<Emb>, RowShape(rows), located, static_cast<const Emb*>(shared_.embedding.data),
             shared_.ln0.weight.f32(), shared_.ln0.bias.f32(), width_, xo);
    });
  }

  // kk = rms(W_b [x0; c]).
  void MakeKk(const ChunkRow* located, int64_t rows, float* kk) {
    const Context::Frame frame(context_);
    const DType weight_dtype = shared_.key_compressed.data.dtype;
    void* c = context_.Scratch(rows * shared_.key_compressed.in() * SizeOf(weight_dtype));
    VisitFloatType(weight_dtype, [&](auto tag) {
      using To = typename decltype(tag)::type;
      Launch(stream(), CompressedKernel<To>, RowShape(rows), located, Compressed(), static_cast<To*>(c));
    });
    RunProduct(context_, c, shared_.key_compressed, rows, kk, false);
    VisitFloatType(shared_.key_table.dtype, [&](auto tag) {
      using Act = typename decltype(tag)::type;
      Launch(stream(), KeyRowKernel<Act>, RowShape(rows), located, static_cast<const Act*>(shared_.key_table.data),
             width_, kk);
    });
  }

  // x in the type of a matrix that is to be multiplied with it.
  const void* Rounded(const void* x, DType dtype, int64_t count, DType wanted) {
    if (dtype == wanted) return x;
    const Tensor to{context_.Scratch(count * SizeOf(wanted)), wanted, {count}};
    Convert(context_, {x, dtype, {count}}, to);
    return to.data;
  }

  template <typename Weight>
  TanhParts NewTanhRows(int64_t rows) {
    const auto part = [&](int64_t width) {
      return TanhPart{context_.Scratch<Weight>(rows * width), static_cast<int>(width)};
    };
    return {{part(2 * weights_.mix_up.dim(1)), part(weights_.key_down.out()), part(weights_.value_down.out())}};
  }

  template <typename Weight>
  void MakeMixTanh(const ChunkRow* located, int64_t rows, const TanhParts& tanh_rows) {
    const TanhPart& mix = tanh_rows.parts[0];
    Launch(stream(), HiddenKernel<Weight>, ElementShape(rows * mix.width), located, rows, weights_.mix_table.f32(),
           mix.width, static_cast<Weight*>(mix.data));
  }

  // Keys and values before their LoRAs, and the LoRAs' tanh rows unless they have been taken from kept rows. Rows to be
  // multiplied are of the type that most of a layer's matrices have.
  template <typename Weight>
  void MakeSides(int64_t rows, const float* kk, const float* xo, const TanhParts& tanh_rows, bool take_tanh,
                 float* const (&mixed)[2]) {
    const Context::Frame frame(context_);
    const int64_t rank = weights_.mix_up.dim(1);
    const void* hidden = tanh_rows.parts[0].data;
    const DType up_dtype = weights_.mix_up.dtype;
    const auto* up_weight = static_cast<const char*>(weights_.mix_up.data);
    const auto* up_input = static_cast<const char*>(Rounded(hidden, DTypeOf<Weight>(), rows * 2 * rank, up_dtype));
    for (int side = 0; side < 2; ++side) {
      context_.RunGemm({.x = up_input + side * rank * SizeOf(up_dtype),
                        .weight = up_weight + side * rank * width_ * SizeOf(up_dtype),
                        .out = mixed[side],
                        .in_dtype = up_dtype,
                        .out_dtype = DType::kF32,
                        .out_in = false,
                        .rows = rows,
                        .columns = width_,
                        .inner = rank,
                        .ldx = 2 * rank,
                        .ldweight = width_,
                        .ldout = width_});
    }
    Weight* rounded[2] = {context_.Scratch<Weight>(rows * width_), context_.Scratch<Weight>(rows * width_)};
    LaunchShape shape = RowShape(rows);
    shape.grid.y = 2;
    Launch(stream(), MixKernel<Weight>, shape, MixSide{kk, weights_.mix_key.f32(), mixed[0], rounded[0]},
           MixSide{xo, weights_.mix_value.f32(), mixed[1], rounded[1]}, width_);
    if (take_tanh) return;
    const Matrix* const downs[2] = {&weights_.key_down, &weights_.value_down};
    for (int side = 0; side < 2; ++side) {
      const Context::Frame side_frame(context_);
      const int64_t count = rows * downs[side]->out();
      auto* product = context_.Scratch<float>(count);
      RunProduct(context_, Rounded(rounded[side], DTypeOf<Weight>(), rows * width_, downs[side]->data.dtype),
                 *downs[side], rows, product, false);
      Launch(stream(), TanhKernel<Weight>, ElementShape(count), product, count,
             static_cast<Weight*>(tanh_rows.parts[1 + side].data));
    }
  }

  // x += tanh(x down) up.
  template <typename Weight>
  void MakeUp(int64_t rows, const TanhParts& tanh_rows, float* const (&mixed)[2]) {
    const Matrix* const ups[2] = {&weights_.key_up, &weights_.value_up};
    for (int side = 0; side < 2; ++side) {
      const Context::Frame frame(context_);
      const TanhPart& part = tanh_rows.parts[1 + side];
      RunProduct(context_, Rounded(part.data, DTypeOf<Weight>(), rows * part.width, ups[side]->data.dtype), *ups[side],
                 rows, mixed[side], true);
    }
  }

  // What all layers share, as the kernels of gold_rebuild.h have it.
  struct FusedInputs {
    void* xo;           // [rows, D]
    void* kk;           // [rows, D], to be scaled by squares
    float* squares;     // [D / kKeyColumns, rows]
    void* hidden;       // [rows, mix_width]: of the layer whose mix table was given
    int32_t* counters;  // [layers, CounterCount(rows)], zero
  };
  static int CounterCount(int64_t rows) { return static_cast<int>(3 * CeilDiv<int64_t>(rows, kRebuildRows)); }

  template <typename T>
  FusedInputs MakeFusedInputs(const ChunkRow* located, int64_t rows, const float* mix_table, int64_t mix_width,
                              int layers) {
    const auto count = static_cast<int>(rows);
    const int64_t c_width = shared_.key_compressed.in();
    T* xo = context_.Scratch<T>(count * width_);
    T* kk = context_.Scratch<T>(count * width_);
    T* hidden = context_.Scratch<T>(count * mix_width);
    const int counter_count = layers * CounterCount(rows);
    auto* counters = context_.Scratch<int32_t>(counter_count);
    const auto column_blocks = static_cast<unsigned>(width_ / kKeyColumns);
    auto* squares = context_.Scratch<float>(int64_t{column_blocks} * count);
    const Context::Frame frame(context_);
    T* c = context_.Scratch<T>(count * c_width);
    Launch(stream(), PrepareKernel<T>, RowShape(count),
           PrepareArguments{.rows = located,
                            .counters = counters,
                            .counter_count = counter_count,
                            .embedding = shared_.embedding.data,
                            .ln0_weight = shared_.ln0.weight.f32(),
                            .ln0_bias = shared_.ln0.bias.f32(),
                            .mix_table = mix_table,
                            .cache = Compressed(),
                            .width = width_,
                            .mix_width = static_cast<int>(mix_width)},
           xo, hidden, c);
    Launch(stream(), KeyKernel<T>,
           {dim3(column_blocks, static_cast<unsigned>(CeilDiv(count, kRebuildRows))), dim3(kRebuildThreads),
            size_t{2} * (kRebuildRows + kKeyColumns) * 64 * sizeof(T)},
           KeyArguments{.rows = located,
                        .row_count = count,
                        .c = c,
                        .weight = shared_.key_compressed.data.data,
                        .key_table = shared_.key_table.data,
                        .width = width_,
                        .c_width = static_cast<int>(c_width),
                        .squares = squares},
           kk);
    return {xo, kk, squares, hidden, counters};
  }

  // Keys and values before their norms into rows.sides, and factors of the norms if there is a place for them. Scratch
  // of the result stays until the caller's frame ends.
  template <typename T>
  LoraArguments FusedSides(const Rows& rows, const FusedInputs& inputs, const void* hidden, int32_t* counters) {
    const auto count = static_cast<int>(rows.count);
    const int mix_rank = static_cast<int>(weights_.mix_up.dim(1)),
              lora_rank = static_cast<int>(weights_.key_down.out());
    const int row_blocks = CeilDiv(count, kRebuildRows);
    const auto row_grid = static_cast<unsigned>(row_blocks);
    const int steps = static_cast<int>(width_ / kRebuildColumns);
    LoraArguments a{};
    a.row_count = count;
    a.mix_rank = mix_rank;
    a.lora_rank = lora_rank;
    // Few rows are cut into more columns.
    a.down_groups = std::clamp(4 * context_.multiprocessors() / (2 * row_blocks), 1, std::min(8, steps));
    a.up_groups = std::min(2 * a.down_groups, steps);
    a.width = width_;
    a.up_counters = counters + 2 * row_blocks;
    a.factors = rows.factors;
    for (int i = 0; i < 2; ++i) {
      LoraSide& side = a.sides[i];
      side.x = i == 0 ? inputs.kk : inputs.xo;
      side.squares = i == 0 ? inputs.squares : nullptr;
      side.hidden = static_cast<const T*>(hidden) + i * mix_rank;
      side.mix_up = static_cast<const T*>(weights_.mix_up.data) + i * mix_rank * width_;
      side.mix = (i == 0 ? weights_.mix_key : weights_.mix_value).f32();
      side.down = (i == 0 ? weights_.key_down : weights_.value_down).data.data;
      side.up = (i == 0 ? weights_.key_up : weights_.value_up).data.data;
      side.partials = context_.Scratch<float>(int64_t{a.down_groups} * count * lora_rank);
      side.activated = context_.Scratch<T>(int64_t{count} * lora_rank);
      side.down_counters = counters + i * row_blocks;
      side.out = rows.sides[i];
      side.moments = context_.Scratch<float>(int64_t{2} * a.up_groups * count);
    }
    const bool wide_mix = mix_rank > 32, wide_lora = lora_rank > 64;
    const size_t mix_elements = size_t{kRebuildColumns} * (kRebuildRows + 1 + (wide_mix ? 64 : 32));
    const size_t shared_bytes = 2 * (mix_elements + size_t{kRebuildColumns} * (wide_lora ? 128 : 64)) * sizeof(T);
    const auto launch = [&](auto down_kernel, auto up_kernel) {
      const dim3 block(kRebuildThreads);
      Launch(stream(), down_kernel, {dim3(static_cast<unsigned>(a.down_groups), row_grid, 2), block, shared_bytes}, a);
      Launch(stream(), up_kernel, {dim3(static_cast<unsigned>(a.up_groups), row_grid, 2), block, shared_bytes}, a);
    };
    if (wide_mix) {
      wide_lora ? launch(DownKernel<T, 4, 128>, UpKernel<T, 4, 128>) : launch(DownKernel<T, 4, 64>, UpKernel<T, 4, 64>);
    } else {
      wide_lora ? launch(DownKernel<T, 2, 128>, UpKernel<T, 2, 128>) : launch(DownKernel<T, 2, 64>, UpKernel<T, 2, 64>);
    }
    return a;
  }

  Context& context_;
  const DeviceSpan* const spans_;
  const bool steady_;
  const GoldSharedWeights& shared_;
  const GoldKvWeights& weights_;
  const GoldCache* cache_ = nullptr;  // this or the kept rows
  const SharedPages* pages_ = nullptr;
  int64_t kept_tokens_ = 0;
  const int head_size_;
  const int64_t width_;
  const bool fused_;
};

// Attention to chunks that make(device_spans, steady) rebuilds; `upload` sends spans with the page tables it wants.
template <typename Upload, typename Make>
void AttendToChunks(Context& context, ConstTensor q, RowSpans spans, const GoldKvWeights& weights, int head_size,
                    Tensor out, Upload upload, Make make) {
  const int64_t width = q.dim(1);
  for (const std::vector<RowSpan>& cut : CutRows(spans, AttentionRowsMax(width))) {
    const Context::Frame frame(context);
    const DeviceSpan* device_spans = upload(cut);
    Rebuilder rebuilder = make(device_spans, Steady(cut));
    const bool leaves_norms = rebuilder.LeavesNorms();
    Attention attention(context, q, cut, device_spans, head_size, q.dtype,
                        leaves_norms ? UnfinishedNorms{weights.ln_key, weights.ln_value} : UnfinishedNorms{}, out,
                        rebuilder.ChunkPositions());
    std::vector<Piece> pieces;
    for (int i = 0; i < static_cast<int>(cut.size()); ++i) pieces.push_back({i, 0, cut[i].position + cut[i].row_count});
    for (const std::vector<Piece>& chunk : CutChunks(pieces, rebuilder.ChunkPositions())) {
      const Context::Frame chunk_frame(context);
      std::vector<AttendPart> parts;
      int64_t row = 0;
      for (const Piece& piece : chunk) {
        parts.push_back({piece.span, piece.begin, piece.end, row + 1});
        row += 1 + piece.end - piece.begin;
      }
      const Rebuilder::Rows rows = rebuilder.Rebuild(chunk);
      StoredKeys stored{rows.sides[0], rows.sides[1], q.dtype, 0, rows.factors};
      if (!leaves_norms) {
        void* finished[2] = {rows.sides[0], rows.sides[1]};
        if (rows.dtype != q.dtype) {
          for (void*& side : finished) side = context.Scratch(rows.count * width * SizeOf(q.dtype));
        }
        rebuilder.Finish(rows, finished[0], finished[1], q.dtype, false);
        stored.keys = finished[0];
        stored.values = finished[1];
      }
      attention.Add(stored, parts);
    }
    attention.Finish();
  }
}

}  // namespace

bool CanFuse(const GoldSharedWeights& shared, const GoldKvWeights& weights, int head_size) {
  const DType dtype = shared.embedding.dtype;
  const int64_t width = shared.embedding.dim(1), mix_rank = weights.mix_up.dim(1), lora_rank = weights.key_down.out();
  if (SizeOf(dtype) != 2 || width % kKeyColumns != 0 || width > int64_t{kPrepareVectors} * kRowThreads * 8) {
    return false;
  }
  if (head_size != 64 && head_size != 128) return false;
  if (mix_rank % 8 != 0 || mix_rank > kMixRankMax || lora_rank % 8 != 0 || lora_rank > kLoraRankMax) return false;
  if (shared.key_compressed.in() % 8 != 0 || weights.value_down.out() != lora_rank) return false;
  for (const Matrix* matrix : {&weights.key_down, &weights.key_up, &weights.value_down, &weights.value_up}) {
    if (matrix->layout != Matrix::Layout::kInOut) return false;
  }
  if (shared.key_compressed.layout != Matrix::Layout::kOutIn) return false;
  for (ConstTensor matrix :
       {shared.embedding, shared.key_table, shared.key_compressed.data, weights.mix_up, weights.key_down.data,
        weights.key_up.data, weights.value_down.data, weights.value_up.data}) {
    if (matrix.dtype != dtype || reinterpret_cast<uintptr_t>(matrix.data) % 16 != 0) return false;
  }
  return true;
}

void GoldAttention(Context& context, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                   const GoldKvWeights& weights, const GoldCache& cache, int head_size, Tensor out) {
  AttendToChunks(
      context, q, spans, weights, head_size, out,
      [&](RowSpans cut) { return context.UploadSpans(cut, cache.page_tokens()); },
      [&](const DeviceSpan* device_spans, bool steady) {
        return Rebuilder(context, device_spans, shared, weights, cache, /*kept_tokens=*/0, head_size, steady);
      });
}

void AttendToRebuilt(Context& context, ConstTensor q, RowSpans spans, const GoldSharedWeights& shared,
                     const GoldKvWeights& weights, const SharedPages& pages, int head_size, Tensor out) {
  AttendToChunks(
      context, q, spans, weights, head_size, out,
      [&](RowSpans cut) { return context.UploadSpans(cut, 0, pages.page_tokens); },
      [&](const DeviceSpan* device_spans, bool steady) {
        return Rebuilder(context, device_spans, shared, weights, pages, head_size, steady);
      });
}

void GoldMakeSharedRows(Context& context, RowSpans spans, const GoldSharedWeights& shared,
                        absl::Span<const GoldKvWeights> layers, const GoldCache& cache, int head_size,
                        const GoldSharedRows& rows) {
  const Context::Frame frame(context);
  const DeviceSpan* device_spans = context.UploadSpans(spans, cache.page_tokens(), rows.page_tokens);
  Rebuilder rebuilder(context, device_spans, shared, layers[0], cache, rows.page_tokens, head_size, Steady(spans));
  std::vector<SharedPages> pages;
  for (int i = 0; i < static_cast<int>(layers.size()); ++i) {
    pages.push_back(PagesOf(rows, shared.embedding.dim(1), layers, i, context.activation_dtype()));
  }
  for (const std::vector<Piece>& chunk : CutChunks(PiecesOf(spans), rebuilder.ChunkPositions())) {
    rebuilder.Keep(chunk, layers, pages);
  }
}

void GoldMakeKeysValues(Context& context, RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                        const GoldCache& cache, int head_size, const KvCache& kv) {
  const Context::Frame frame(context);
  const DeviceSpan* device_spans = context.UploadSpans(spans, cache.page_tokens(), kv.page_tokens());
  Rebuilder rebuilder(context, device_spans, shared, weights, cache, kv.page_tokens(), head_size, Steady(spans));
  for (const std::vector<Piece>& chunk : CutChunks(PiecesOf(spans), rebuilder.ChunkPositions())) {
    const Context::Frame chunk_frame(context);
    rebuilder.Finish(rebuilder.Rebuild(chunk), kv.keys.data, kv.values.data, kv.keys.dtype, true);
  }
}

}  // namespace goldfinch::cuda
