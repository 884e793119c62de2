// Attention over the compressed cache: keys and values of a chunk of positions are rebuilt into scratch memory and
// attended to (attend.h), one chunk after the other, so that what is rebuilt stays in the L2 cache.
//
// There are two ways to rebuild. The fused one (gold_rebuild.h) is for 16-bit types and the sizes of real models; the
// other, products by the matrix library with plain kernels between them and every intermediate in fp32, is for the
// rest.
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
// L2 cache (5.5 TB/s), which it is bound by; 331 chunks of 3168 positions with 6 kernels and 2 small copies each add
// some 18 us a chunk between kernels, 6 ms. The prediction:
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
// cannot be met from ids and c alone. Keeping kk and the LoRAs' tanh rows (tier T2) would take the key table, W_c and
// both down sides away.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/gold_rebuild.h"
#include "kernels/cuda/gold_rows.h"
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

template <typename Id>
__global__ void LocateKernel(const Segment* segments, int count, int rows, const DeviceSpan* spans, const Id* ids,
                             int64_t page_tokens, ChunkRow* to) {
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
    to[row] = {-1, -1, -1, -1, 1};
    return;
  }
  const int32_t* pages = spans[segment.span].pages;
  const auto stored = [&](int64_t position) {
    return position < 0 ? -1 : pages[position / page_tokens] * page_tokens + position % page_tokens;
  };
  ChunkRow result;
  result.position = segment.position + row - segment.row_begin;
  result.stored = stored(result.position);
  result.id = result.stored < 0 ? -1 : static_cast<int32_t>(ids[result.stored]);
  result.only_before = row == segment.row_begin ? 1 : 0;
  const int64_t before = row == segment.row_begin ? -1 : stored(result.position - 1);
  result.prev_id = before < 0 ? -1 : static_cast<int32_t>(ids[before]);
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
template <typename From, typename To>
__global__ void __launch_bounds__(kRowThreads)
    CompressedKernel(const ChunkRow* rows, const From* cache, int64_t width, To* to) {
  const int64_t row = blockIdx.x, stored = rows[row].stored;
  for (int64_t i = threadIdx.x; i < width; i += kRowThreads) {
    to[row * width + i] = FromFloat<To>(stored < 0 ? 0.f : ToFloat(cache[stored * width + i]));
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

// LayerNorm, rotation of keys, rounding; to the same row of `to`, which may be x, or into pages: where the row is in
// the cache.
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
  To* to = static_cast<To*>(side.to) + (into_pages ? rows[row].stored : row) * width;
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

// A run of positions to be rebuilt.
struct Piece {
  int span;
  int64_t begin;
  int64_t end;
};

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
  // `steady`: chunks are filled up, so that launches stay the same over many a token of a decode step.
  Rebuilder(Context& context, const DeviceSpan* spans, const GoldShared& shared, const GoldKvWeights& weights,
            const GoldCache& cache, int head_size, bool steady)
      : context_(context),
        spans_(spans),
        steady_(steady),
        shared_(shared),
        weights_(weights),
        cache_(cache),
        head_size_(head_size),
        width_(shared.embedding.dim(1)),
        fused_(CanFuse()) {}

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
    std::vector<Segment> segments;
    Rows rows;
    for (const Piece& piece : chunk) {
      segments.push_back({piece.span, static_cast<int32_t>(rows.count), piece.begin - 1});
      rows.count += 1 + piece.end - piece.begin;
    }
    if (steady_) {
      const int64_t filled = PowerOfTwoFrom(static_cast<int64_t>(segments.size()) + 1);
      const int64_t rows_max = ChunkPositions() + filled;
      segments.resize(filled, {-1, static_cast<int32_t>(rows.count), 0});
      rows.count = std::min(FilledRows(rows.count), rows_max);
    }
    if (fused_) rows.dtype = shared_.embedding.dtype;
    for (void*& side : rows.sides) side = context_.Scratch(rows.count * width_ * SizeOf(rows.dtype));
    if (LeavesNorms()) rows.factors = context_.Scratch<float>(4 * rows.count);
    rows.located = Locate(segments, static_cast<int>(rows.count));
    const Context::Frame frame(context_);
    if (fused_) {
      if (rows.dtype == DType::kF16) {
        Fused<f16_t>(rows);
      } else {
        Fused<bf16_t>(rows);
      }
    } else {
      auto* xo = context_.Scratch<float>(rows.count * width_);
      auto* kk = context_.Scratch<float>(rows.count * width_);
      MakeInputs(rows.located, rows.count, xo, kk);
      float* const mixed[2] = {static_cast<float*>(rows.sides[0]), static_cast<float*>(rows.sides[1])};
      VisitFloatType(weights_.key_down.data.dtype, [&](auto tag) {
        using Weight = typename decltype(tag)::type;
        MakeMixed<Weight>(rows.located, rows.count, kk, xo, mixed);
      });
    }
    return rows;
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
  Stream stream() const { return static_cast<Stream>(context_.stream()); }
  // One element a thread.
  static LaunchShape ElementShape(int64_t count) {
    return {dim3(static_cast<unsigned>(CeilDiv<int64_t>(count, kRowThreads))), dim3(kRowThreads)};
  }

  const ChunkRow* Locate(const std::vector<Segment>& segments, int rows) {
    const Segment* device_segments = context_.UploadShared(absl::MakeConstSpan(segments));
    auto* located = context_.Scratch<ChunkRow>(rows);
    const auto count = static_cast<int>(segments.size());
    if (cache_.ids.dtype == DType::kU16) {
      Launch(stream(), LocateKernel<uint16_t>, ElementShape(rows), device_segments, count, rows, spans_,
             static_cast<const uint16_t*>(cache_.ids.data), cache_.page_tokens(), located);
    } else {
      Launch(stream(), LocateKernel<int32_t>, ElementShape(rows), device_segments, count, rows, spans_,
             static_cast<const int32_t*>(cache_.ids.data), cache_.page_tokens(), located);
    }
    return located;
  }

  // xo and kk = rms(W_b [x0; c]).
  void MakeInputs(const ChunkRow* located, int64_t rows, float* xo, float* kk) {
    const Context::Frame frame(context_);
    VisitFloatType(shared_.embedding.dtype, [&](auto tag) {
      using Emb = typename decltype(tag)::type;
      Launch(stream(), InputKernel<Emb>, RowShape(rows), located, static_cast<const Emb*>(shared_.embedding.data),
             shared_.ln0.weight.f32(), shared_.ln0.bias.f32(), width_, xo);
    });
    const int64_t c_width = cache_.c.dim(2);
    const DType weight_dtype = shared_.key_compressed.data.dtype;
    void* c = context_.Scratch(rows * c_width * SizeOf(weight_dtype));
    VisitFloatType(cache_.c.dtype, [&](auto from_tag) {
      VisitFloatType(weight_dtype, [&](auto to_tag) {
        using From = typename decltype(from_tag)::type;
        using To = typename decltype(to_tag)::type;
        Launch(stream(), CompressedKernel<From, To>, RowShape(rows), located, static_cast<const From*>(cache_.c.data),
               c_width, static_cast<To*>(c));
      });
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

  // Keys and values before their norms. Rows to be multiplied are of the type that most of a layer's matrices have.
  template <typename Weight>
  void MakeMixed(const ChunkRow* located, int64_t rows, const float* kk, const float* xo, float* const (&mixed)[2]) {
    const Context::Frame frame(context_);
    const int64_t rank = weights_.mix_up.dim(1);
    auto* hidden = context_.Scratch<Weight>(rows * 2 * rank);
    Launch(stream(), HiddenKernel<Weight>, ElementShape(rows * 2 * rank), located, rows, weights_.mix_table.f32(),
           2 * rank, hidden);
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
    // x += tanh(x down) up.
    const Matrix* const downs[2] = {&weights_.key_down, &weights_.value_down};
    const Matrix* const ups[2] = {&weights_.key_up, &weights_.value_up};
    for (int side = 0; side < 2; ++side) {
      const Context::Frame side_frame(context_);
      const int64_t count = rows * downs[side]->out();
      auto* product = context_.Scratch<float>(count);
      auto* activated = context_.Scratch<Weight>(count);
      RunProduct(context_, Rounded(rounded[side], DTypeOf<Weight>(), rows * width_, downs[side]->data.dtype),
                 *downs[side], rows, product, false);
      Launch(stream(), TanhKernel<Weight>, ElementShape(count), product, count, activated);
      RunProduct(context_, Rounded(activated, DTypeOf<Weight>(), count, ups[side]->data.dtype), *ups[side], rows,
                 mixed[side], true);
    }
  }

  // The kernels of gold_rebuild.h want all matrices of one 16-bit type, rows of whole 16-byte pieces, and sizes within
  // their limits.
  bool CanFuse() const {
    const DType dtype = shared_.embedding.dtype;
    const int64_t mix_rank = weights_.mix_up.dim(1), lora_rank = weights_.key_down.out();
    if (SizeOf(dtype) != 2 || width_ % kKeyColumns != 0 || width_ > int64_t{kPrepareVectors} * kRowThreads * 8) {
      return false;
    }
    if (head_size_ != 64 && head_size_ != 128) return false;
    if (mix_rank % 8 != 0 || mix_rank > kMixRankMax || lora_rank % 8 != 0 || lora_rank > kLoraRankMax) return false;
    if (cache_.c.dim(2) % 8 != 0 || weights_.value_down.out() != lora_rank) return false;
    for (const Matrix* matrix : {&weights_.key_down, &weights_.key_up, &weights_.value_down, &weights_.value_up}) {
      if (matrix->layout != Matrix::Layout::kInOut) return false;
    }
    if (shared_.key_compressed.layout != Matrix::Layout::kOutIn) return false;
    for (ConstTensor matrix :
         {shared_.embedding, shared_.key_table, shared_.key_compressed.data, weights_.mix_up, weights_.key_down.data,
          weights_.key_up.data, weights_.value_down.data, weights_.value_up.data}) {
      if (matrix.dtype != dtype || reinterpret_cast<uintptr_t>(matrix.data) % 16 != 0) return false;
    }
    return true;
  }

  template <typename T>
  void Fused(const Rows& rows) {
    const auto count = static_cast<int>(rows.count);
    const int mix_rank = static_cast<int>(weights_.mix_up.dim(1)),
              lora_rank = static_cast<int>(weights_.key_down.out());
    const int64_t c_width = cache_.c.dim(2);
    T* xo = context_.Scratch<T>(count * width_);
    T* kk = context_.Scratch<T>(count * width_);
    T* hidden = context_.Scratch<T>(int64_t{count} * 2 * mix_rank);
    T* c = context_.Scratch<T>(count * c_width);
    const int row_blocks = CeilDiv(count, kRebuildRows);
    auto* counters = context_.Scratch<int32_t>(3 * row_blocks);
    Launch(stream(), PrepareKernel<T>, RowShape(count),
           PrepareArguments{.rows = rows.located,
                            .counters = counters,
                            .counter_count = 3 * row_blocks,
                            .embedding = shared_.embedding.data,
                            .ln0_weight = shared_.ln0.weight.f32(),
                            .ln0_bias = shared_.ln0.bias.f32(),
                            .mix_table = weights_.mix_table.f32(),
                            .cache_c = cache_.c.data,
                            .c_dtype = cache_.c.dtype,
                            .width = width_,
                            .c_width = c_width,
                            .mix_width = 2 * mix_rank},
           xo, hidden, c);

    const auto column_blocks = static_cast<unsigned>(width_ / kKeyColumns);
    const auto row_grid = static_cast<unsigned>(row_blocks);
    auto* squares = context_.Scratch<float>(int64_t{column_blocks} * count);
    Launch(stream(), KeyKernel<T>,
           {dim3(column_blocks, row_grid), dim3(kRebuildThreads),
            size_t{2} * (kRebuildRows + kKeyColumns) * 64 * sizeof(T)},
           KeyArguments{.rows = rows.located,
                        .row_count = count,
                        .c = c,
                        .weight = shared_.key_compressed.data.data,
                        .key_table = shared_.key_table.data,
                        .width = width_,
                        .c_width = static_cast<int>(c_width),
                        .squares = squares},
           kk);

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
      side.x = i == 0 ? kk : xo;
      side.squares = i == 0 ? squares : nullptr;
      side.hidden = hidden + i * mix_rank;
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
  }

  Context& context_;
  const DeviceSpan* const spans_;
  const bool steady_;
  const GoldShared& shared_;
  const GoldKvWeights& weights_;
  const GoldCache& cache_;
  const int head_size_;
  const int64_t width_;
  const bool fused_;
};

}  // namespace

void GoldAttention(Context& context, ConstTensor q, RowSpans spans, const GoldShared& shared,
                   const GoldKvWeights& weights, const GoldCache& cache, int head_size, Tensor out) {
  const int64_t width = q.dim(1);
  for (const std::vector<RowSpan>& cut : CutRows(spans, AttentionRowsMax(width))) {
    const Context::Frame frame(context);
    const DeviceSpan* device_spans = context.UploadSpans(cut, cache.page_tokens());
    Rebuilder rebuilder(context, device_spans, shared, weights, cache, head_size, Steady(cut));
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

void GoldKeysValues(Context& context, RowSpans spans, const GoldShared& shared, const GoldKvWeights& weights,
                    const GoldCache& cache, int head_size, const KvCache& kv) {
  const Context::Frame frame(context);
  Rebuilder rebuilder(context, context.UploadSpans(spans, cache.page_tokens()), shared, weights, cache, head_size,
                      Steady(spans));
  std::vector<Piece> pieces;
  for (int i = 0; i < static_cast<int>(spans.size()); ++i) {
    pieces.push_back({i, spans[i].position, spans[i].position + spans[i].row_count});
  }
  for (const std::vector<Piece>& chunk : CutChunks(pieces, rebuilder.ChunkPositions())) {
    const Context::Frame chunk_frame(context);
    rebuilder.Finish(rebuilder.Rebuild(chunk), kv.keys.data, kv.values.data, kv.keys.dtype, true);
  }
}

}  // namespace goldfinch::cuda
