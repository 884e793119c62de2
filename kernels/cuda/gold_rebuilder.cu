#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/gold_fused.h"
#include "kernels/cuda/gold_fused_lora.h"
#include "kernels/cuda/gold_inputs.h"
#include "kernels/cuda/gold_plain.h"
#include "kernels/cuda/gold_rebuilder.h"
#include "kernels/cuda/gold_shared.h"
#include "kernels/cuda/gold_shared_rows.h"
#include "kernels/cuda/ops.h"

namespace goldfinch::cuda {

using fused::LoraArguments;
using shared_rows::TanhPart;
using shared_rows::TanhParts;
namespace {

constexpr int64_t kChunkBytes = int64_t{64} << 20;  // of scratch for a chunk's rows, about
// Positions of a chunk for each multiprocessor.
constexpr int64_t kPlainPositions = 16;
constexpr int64_t kFusedPositions = 24;

// A number of rows that stays the same for many tokens: a multiple of 32, or of 1/16 of the next power of two.
int64_t FilledRows(int64_t rows) {
  constexpr int64_t kLeast = 32;
  const int64_t step = std::max(kLeast, PowerOfTwoFrom(rows) / 16);
  return CeilDiv(rows, step) * step;
}

template <typename Use>
void VisitHalfType(DType dtype, Use use) {
  if (dtype == DType::kF16) {
    use(TypeTag<f16_t>());
  } else {
    use(TypeTag<bf16_t>());
  }
}

// A thread has one element.
LaunchShape ElementShape(int64_t count) {
  return {dim3(static_cast<unsigned>(CeilDiv<int64_t>(count, kRowThreads))), dim3(kRowThreads)};
}

// Blocks for the rows of both sides, keys and values.
LaunchShape SidesShape(int64_t rows) {
  LaunchShape shape = RowShape(rows);
  shape.grid.y = 2;
  return shape;
}

// Counters that the fused kernels need for a layer.
int CounterCount(int64_t rows) { return static_cast<int>(3 * CeilDiv<int64_t>(rows, fused::kRowsOfBlock)); }

}  // namespace

std::vector<PositionRun> RunsOf(RowSpans spans) {
  std::vector<PositionRun> runs;
  for (int i = 0; i < static_cast<int>(spans.size()); ++i) {
    runs.push_back({i, spans[i].position, spans[i].position + spans[i].row_count});
  }
  return runs;
}

std::vector<RebuiltChunk> CutChunks(const std::vector<PositionRun>& runs, int64_t positions) {
  std::vector<RebuiltChunk> chunks;
  int64_t left = 0;
  for (PositionRun run : runs) {
    while (run.begin < run.end) {
      if (left == 0) {
        chunks.emplace_back();
        left = positions;
      }
      const int64_t count = std::min(left, run.end - run.begin);
      chunks.back().push_back({run.span, run.begin, run.begin + count});
      run.begin += count;
      left -= count;
    }
  }
  return chunks;
}

bool IsDecodeStep(RowSpans spans) {
  return std::all_of(spans.begin(), spans.end(), [](const RowSpan& span) { return span.row_count == 1; });
}

Rebuilder::Rebuilder(Context& context, const DeviceSpan* spans, const GoldSharedWeights& shared,
                     const GoldKvWeights& weights, int head_size, bool fused, bool steady)
    : context_(context),
      spans_(spans),
      steady_(steady),
      shared_(shared),
      weights_(weights),
      head_size_(head_size),
      width_(shared.embedding.dim(1)),
      fused_(fused) {}

Rebuilder::Rebuilder(Context& context, const DeviceSpan* spans, const GoldSharedWeights& shared,
                     const GoldKvWeights& weights, const GoldCache& cache, int64_t kept_tokens, int head_size,
                     bool steady)
    : Rebuilder(context, spans, shared, weights, head_size, CanFuse(shared, weights, head_size), steady) {
  cache_ = &cache;
  kept_tokens_ = kept_tokens;
}

Rebuilder::Rebuilder(Context& context, const DeviceSpan* spans, const GoldSharedWeights& shared,
                     const GoldKvWeights& weights, const SharedPages& pages, int head_size, bool steady)
    : Rebuilder(context, spans, shared, weights, head_size, /*fused=*/false, steady) {
  pages_ = &pages;
}

int64_t Rebuilder::ChunkPositions() const {
  const int64_t wanted = (fused_ ? kFusedPositions : kPlainPositions) * context_.multiprocessors();
  return std::max<int64_t>(16, std::min(wanted, kChunkBytes / ((fused_ ? 9 : 32) * width_)));
}

const ChunkRow* Rebuilder::Locate(const RebuiltChunk& chunk, int64_t& count) {
  std::vector<plain::Segment> segments;
  count = 0;
  for (const PositionRun& run : chunk) {
    segments.push_back({run.span, static_cast<int32_t>(count), run.begin - 1});
    count += 1 + run.end - run.begin;
  }
  if (steady_) {
    const int64_t filled = PowerOfTwoFrom(static_cast<int64_t>(segments.size()) + 1);
    const int64_t rows_max = ChunkPositions() + filled;
    segments.resize(filled, {-1, static_cast<int32_t>(count), 0});
    count = std::min(FilledRows(count), rows_max);
  }
  const plain::Segment* device_segments = context_.UploadShared(absl::MakeConstSpan(segments));
  auto* located = context_.Scratch<ChunkRow>(count);
  const auto locate = [&](auto ids) {
    Launch(stream(), plain::LocateKernel<decltype(ids)>, ElementShape(count), device_segments,
           static_cast<int>(segments.size()), static_cast<int>(count), spans_, ids, located);
  };
  if (pages_ != nullptr) {
    locate(plain::SharedRowIds{*pages_});
  } else if (cache_->ids.dtype == DType::kU16) {
    locate(
        plain::CacheIds<uint16_t>{static_cast<const uint16_t*>(cache_->ids.data), cache_->page_tokens(), kept_tokens_});
  } else {
    locate(
        plain::CacheIds<int32_t>{static_cast<const int32_t*>(cache_->ids.data), cache_->page_tokens(), kept_tokens_});
  }
  return located;
}

Rebuilder::Rows Rebuilder::Rebuild(const RebuiltChunk& chunk) {
  Rows rows;
  rows.located = Locate(chunk, rows.count);
  if (fused_) rows.dtype = shared_.embedding.dtype;
  for (void*& side : rows.sides) side = context_.Scratch(rows.count * width_ * SizeOf(rows.dtype));
  if (LeavesNorms()) rows.factors = context_.Scratch<float>(4 * rows.count);
  const Context::Frame frame(context_);
  if (!fused_) {
    RebuildPlain(rows);
    return rows;
  }
  VisitHalfType(rows.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const FusedInputs inputs =
        MakeFusedInputs<T>(rows.located, rows.count, weights_.mix_table.f32(), 2 * weights_.mix_up.dim(1), 1);
    FusedSides<T>(rows, inputs, inputs.hidden, inputs.counters);
  });
  return rows;
}

void Rebuilder::Finish(const Rows& rows, void* keys, void* values, DType dtype, bool into_pages) {
  VisitFloatType(rows.dtype, [&](auto from_tag) {
    VisitFloatType(dtype, [&](auto to_tag) {
      using From = typename decltype(from_tag)::type;
      using To = typename decltype(to_tag)::type;
      Launch(stream(), plain::FinishKernel<From, To>, SidesShape(rows.count), rows.located,
             plain::FinishSide{rows.sides[0], weights_.ln_key.weight.f32(), weights_.ln_key.bias.f32(), keys},
             plain::FinishSide{rows.sides[1], weights_.ln_value.weight.f32(), weights_.ln_value.bias.f32(), values},
             width_, head_size_, weights_.rope_base, into_pages);
    });
  });
}

// --- The plain way ---------------------------------------------------------------------------------------------------

// Keys and values before their norms into rows.sides.
void Rebuilder::RebuildPlain(const Rows& rows) {
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
        Launch(stream(), shared_rows::LoadRowsKernel<Act, Weight>, RowShape(rows.count), rows.located, *pages_, width_,
               kk, tanh_rows);
      });
    }
    MakeSides<Weight>(rows.count, kk, xo, tanh_rows, /*tanh_known=*/pages_ != nullptr, mixed);
    MakeUp<Weight>(rows.count, tanh_rows, mixed);
  });
}

void Rebuilder::MakeXo(const ChunkRow* located, int64_t rows, float* xo) {
  VisitFloatType(shared_.embedding.dtype, [&](auto tag) {
    using Emb = typename decltype(tag)::type;
    Launch(stream(), plain::InputKernel<Emb>, RowShape(rows), located, static_cast<const Emb*>(shared_.embedding.data),
           shared_.ln0.weight.f32(), shared_.ln0.bias.f32(), width_, xo);
  });
}

// kk = rms(W_b [x0; c]).
void Rebuilder::MakeKk(const ChunkRow* located, int64_t rows, float* kk) {
  const Context::Frame frame(context_);
  const DType weight_dtype = shared_.key_compressed.data.dtype;
  void* c = context_.Scratch(rows * shared_.key_compressed.in() * SizeOf(weight_dtype));
  VisitFloatType(weight_dtype, [&](auto tag) {
    using To = typename decltype(tag)::type;
    Launch(stream(), plain::CompressedKernel<To>, RowShape(rows), located, Compressed(), static_cast<To*>(c));
  });
  RunProduct(context_, c, shared_.key_compressed, rows, kk, false);
  VisitFloatType(shared_.key_table.dtype, [&](auto tag) {
    using Act = typename decltype(tag)::type;
    Launch(stream(), plain::KeyRowKernel<Act>, RowShape(rows), located, static_cast<const Act*>(shared_.key_table.data),
           width_, kk);
  });
}

// x in the type of the matrix that it is to be multiplied with.
const void* Rebuilder::Rounded(const void* x, DType dtype, int64_t count, DType wanted) {
  if (dtype == wanted) return x;
  const Tensor to{context_.Scratch(count * SizeOf(wanted)), wanted, {count}};
  Convert(context_, {x, dtype, {count}}, to);
  return to.data;
}

template <typename Weight>
TanhParts Rebuilder::NewTanhRows(int64_t rows) {
  const auto part = [&](int64_t width) {
    return TanhPart{context_.Scratch<Weight>(rows * width), static_cast<int>(width)};
  };
  return {{part(2 * weights_.mix_up.dim(1)), part(weights_.key_down.out()), part(weights_.value_down.out())}};
}

template <typename Weight>
void Rebuilder::MakeMixTanh(const ChunkRow* located, int64_t rows, const TanhParts& tanh_rows) {
  const TanhPart& mix = tanh_rows.parts[0];
  Launch(stream(), plain::HiddenKernel<Weight>, ElementShape(rows * mix.width), located, rows, weights_.mix_table.f32(),
         mix.width, static_cast<Weight*>(mix.data));
}

// Keys and values before their LoRAs into `mixed`, and the LoRAs' tanh rows unless they are known from shared rows.
// Rows to be multiplied are of the type that most of a layer's matrices have.
template <typename Weight>
void Rebuilder::MakeSides(int64_t rows, const float* kk, const float* xo, const TanhParts& tanh_rows, bool tanh_known,
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
  Launch(stream(), plain::MixKernel<Weight>, SidesShape(rows),
         plain::MixSide{kk, weights_.mix_key.f32(), mixed[0], rounded[0]},
         plain::MixSide{xo, weights_.mix_value.f32(), mixed[1], rounded[1]}, width_);
  if (tanh_known) return;
  const Matrix* const downs[2] = {&weights_.key_down, &weights_.value_down};
  for (int side = 0; side < 2; ++side) {
    const Context::Frame side_frame(context_);
    const int64_t count = rows * downs[side]->out();
    auto* product = context_.Scratch<float>(count);
    RunProduct(context_, Rounded(rounded[side], DTypeOf<Weight>(), rows * width_, downs[side]->data.dtype),
               *downs[side], rows, product, false);
    Launch(stream(), plain::TanhKernel<Weight>, ElementShape(count), product, count,
           static_cast<Weight*>(tanh_rows.parts[1 + side].data));
  }
}

// x += tanh(x down) up.
template <typename Weight>
void Rebuilder::MakeUp(int64_t rows, const TanhParts& tanh_rows, float* const (&mixed)[2]) {
  const Matrix* const ups[2] = {&weights_.key_up, &weights_.value_up};
  for (int side = 0; side < 2; ++side) {
    const Context::Frame frame(context_);
    const TanhPart& part = tanh_rows.parts[1 + side];
    RunProduct(context_, Rounded(part.data, DTypeOf<Weight>(), rows * part.width, ups[side]->data.dtype), *ups[side],
               rows, mixed[side], true);
  }
}

// --- The fused way ---------------------------------------------------------------------------------------------------

// Valid until the caller's frame ends.
template <typename T>
Rebuilder::FusedInputs Rebuilder::MakeFusedInputs(const ChunkRow* located, int64_t rows, const float* mix_table,
                                                  int64_t mix_width, int layers) {
  const auto count = static_cast<int>(rows);
  const int64_t c_width = shared_.key_compressed.in();
  T* xo = context_.Scratch<T>(count * width_);
  T* kk = context_.Scratch<T>(count * width_);
  T* hidden = context_.Scratch<T>(count * mix_width);
  const int counter_count = layers * CounterCount(rows);
  auto* counters = context_.Scratch<int32_t>(counter_count);
  const auto column_blocks = static_cast<unsigned>(width_ / fused::kKeyColumns);
  auto* squares = context_.Scratch<float>(int64_t{column_blocks} * count);
  const Context::Frame frame(context_);
  T* c = context_.Scratch<T>(count * c_width);
  Launch(stream(), fused::PrepareKernel<T>, RowShape(count),
         fused::PrepareArguments{.rows = located,
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
  Launch(stream(), fused::KeyKernel<T>,
         {dim3(column_blocks, static_cast<unsigned>(CeilDiv(count, fused::kRowsOfBlock))), dim3(fused::kThreads),
          size_t{2} * (fused::kRowsOfBlock + fused::kKeyColumns) * 64 * sizeof(T)},
         fused::KeyArguments{.rows = located,
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

// Keys and values before their norms into rows.sides, and the norms' factors if rows.factors is given. Scratch memory
// of the result stays until the caller's frame ends.
template <typename T>
LoraArguments Rebuilder::FusedSides(const Rows& rows, const FusedInputs& inputs, const void* hidden,
                                    int32_t* counters) {
  const auto count = static_cast<int>(rows.count);
  const int mix_rank = static_cast<int>(weights_.mix_up.dim(1)), lora_rank = static_cast<int>(weights_.key_down.out());
  const int row_blocks = CeilDiv(count, fused::kRowsOfBlock);
  const int steps = static_cast<int>(width_ / fused::kColumns);
  LoraArguments a{};
  a.row_count = count;
  a.mix_rank = mix_rank;
  a.lora_rank = lora_rank;
  // With few rows there are more column groups.
  a.down_groups = std::clamp(4 * context_.multiprocessors() / (2 * row_blocks), 1, std::min(8, steps));
  a.up_groups = std::min(2 * a.down_groups, steps);
  a.width = width_;
  a.up_counters = counters + 2 * row_blocks;
  a.factors = rows.factors;
  for (int i = 0; i < 2; ++i) {
    fused::LoraSide& side = a.sides[i];
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
  fused::LaunchLoras<T>(stream(), a);
  return a;
}

// --- Shared rows -----------------------------------------------------------------------------------------------------

template <typename Use>
void Rebuilder::ForEachLayer(absl::Span<const GoldKvWeights> layers, absl::Span<const SharedPages> pages, Use use) {
  for (size_t i = 0; i < layers.size(); ++i) {
    const Context::Frame frame(context_);
    Rebuilder layer(context_, spans_, shared_, layers[i], *cache_, kept_tokens_, head_size_, steady_);
    use(layer, pages[i], static_cast<int>(i));
  }
}

// Stores what all layers share. If squares are given, kk is scaled.
template <typename Kk>
void Rebuilder::StoreInputs(const ChunkRow* located, int64_t count, Kk* kk, const float* squares, int square_blocks,
                            const SharedPages& pages) {
  VisitFloatType(shared_.embedding.dtype, [&](auto tag) {
    VisitFloatType(context_.activation_dtype(), [&](auto act_tag) {
      using Emb = typename decltype(tag)::type;
      using Act = typename decltype(act_tag)::type;
      Launch(stream(), shared_rows::StoreInputsKernel<Kk, Emb, Act>, RowShape(count), located, kk, squares,
             square_blocks, static_cast<const Emb*>(shared_.embedding.data), shared_.ln0.weight.f32(),
             shared_.ln0.bias.f32(), width_, pages);
    });
  });
}

void Rebuilder::MakeSharedRows(const RebuiltChunk& chunk, absl::Span<const GoldKvWeights> layers,
                               absl::Span<const SharedPages> pages) {
  const Context::Frame frame(context_);
  int64_t count = 0;
  const ChunkRow* located = Locate(chunk, count);
  const bool fused = std::all_of(layers.begin(), layers.end(),
                                 [&](const GoldKvWeights& weights) { return CanFuse(shared_, weights, head_size_); });
  if (!fused) return MakeSharedRowsPlain(located, count, layers, pages);
  VisitHalfType(shared_.embedding.dtype,
                [&](auto tag) { MakeSharedRowsFused<typename decltype(tag)::type>(located, count, layers, pages); });
}

template <typename T>
void Rebuilder::MakeSharedRowsFused(const ChunkRow* located, int64_t count, absl::Span<const GoldKvWeights> layers,
                                    absl::Span<const SharedPages> pages) {
  FusedInputs inputs = MakeFusedInputs<T>(located, count, nullptr, 0, static_cast<int>(layers.size()));
  StoreInputs(located, count, static_cast<T*>(inputs.kk), inputs.squares, static_cast<int>(width_ / fused::kKeyColumns),
              pages[0]);
  inputs.squares = nullptr;  // kk is scaled now
  ForEachLayer(layers, pages, [&](Rebuilder& layer, const SharedPages& to, int index) {
    const auto mix_width = static_cast<int>(2 * layer.weights_.mix_up.dim(1));
    Rows rows{.count = count, .located = located, .dtype = DTypeOf<T>()};
    for (void*& side : rows.sides) side = context_.Scratch(count * width_ * SizeOf(rows.dtype));
    rows.factors = context_.Scratch<float>(4 * count);
    TanhParts parts{{{context_.Scratch<T>(count * mix_width), mix_width}}};
    layer.MakeMixTanh<T>(located, count, parts);
    const LoraArguments made =
        layer.FusedSides<T>(rows, inputs, parts.parts[0].data, inputs.counters + index * CounterCount(count));
    for (int side = 0; side < 2; ++side) parts.parts[1 + side] = {made.sides[side].activated, made.lora_rank};
    Launch(stream(), shared_rows::StoreTanhKernel<T, T>, RowShape(count), located, parts, rows.factors, to);
  });
}

void Rebuilder::MakeSharedRowsPlain(const ChunkRow* located, int64_t count, absl::Span<const GoldKvWeights> layers,
                                    absl::Span<const SharedPages> pages) {
  auto* xo = context_.Scratch<float>(count * width_);
  auto* kk = context_.Scratch<float>(count * width_);
  MakeXo(located, count, xo);
  MakeKk(located, count, kk);
  StoreInputs(located, count, kk, nullptr, 0, pages[0]);
  float* const mixed[2] = {context_.Scratch<float>(count * width_), context_.Scratch<float>(count * width_)};
  ForEachLayer(layers, pages, [&](Rebuilder& layer, const SharedPages& to, int) {
    VisitFloatType(layer.weights_.key_down.data.dtype, [&](auto tag) {
      VisitFloatType(context_.activation_dtype(), [&](auto act_tag) {
        using Weight = typename decltype(tag)::type;
        using Act = typename decltype(act_tag)::type;
        const TanhParts tanh_rows = layer.NewTanhRows<Weight>(count);
        layer.MakeMixTanh<Weight>(located, count, tanh_rows);
        layer.MakeSides<Weight>(count, kk, xo, tanh_rows, /*tanh_known=*/false, mixed);
        Launch(stream(), shared_rows::StoreTanhKernel<Weight, Act>, RowShape(count), located, tanh_rows,
               static_cast<const float*>(nullptr), to);
      });
    });
  });
}

bool CanFuse(const GoldSharedWeights& shared, const GoldKvWeights& weights, int head_size) {
  const DType dtype = shared.embedding.dtype;
  const int64_t width = shared.embedding.dim(1), mix_rank = weights.mix_up.dim(1), lora_rank = weights.key_down.out();
  if (SizeOf(dtype) != 2 || width % fused::kKeyColumns != 0 || width > fused::kWidthMax) {
    return false;
  }
  if (head_size != 64 && head_size != 128) return false;
  if (mix_rank % 8 != 0 || mix_rank > fused::kMixRankMax || lora_rank % 8 != 0 || lora_rank > fused::kLoraRankMax)
    return false;
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

}  // namespace goldfinch::cuda
