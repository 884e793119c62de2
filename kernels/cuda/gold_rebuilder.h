// Rebuilds the keys and values of a GOLD layer, a chunk of positions at a time, into scratch memory; fills the shared
// tier on the way.
#ifndef GOLDFINCH_KERNELS_CUDA_GOLD_REBUILDER_H_
#define GOLDFINCH_KERNELS_CUDA_GOLD_REBUILDER_H_

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/backend.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/gold_inputs.h"
#include "kernels/cuda/gold_shared.h"

namespace goldfinch::cuda {

namespace fused {
struct LoraArguments;
}
namespace shared_rows {
struct TanhParts;
}

// A run of positions [begin, end) to be rebuilt.
struct PositionRun {
  int span;
  int64_t begin;
  int64_t end;
};
using RebuiltChunk = std::vector<PositionRun>;

// The spans' own positions.
std::vector<PositionRun> RunsOf(RowSpans spans);
// Cuts the runs into chunks of at most `positions` positions.
std::vector<RebuiltChunk> CutChunks(const std::vector<PositionRun>& runs, int64_t positions);
// Whether the spans are those of a decode step, one row each.
bool IsDecodeStep(RowSpans spans);

// There are two ways to rebuild. The fused one (gold_fused.h) is for 16-bit types and the sizes of real models; the
// plain one (gold_plain.h) is for the rest. The arguments must outlive the rebuilder.
class Rebuilder {
 public:
  // From the compressed cache. `kept_tokens`: tokens of a page of the tier that is filled, or 0. `steady`: chunks are
  // filled up with empty rows, so that launches stay the same over many tokens of decoding.
  Rebuilder(Context& context, const DeviceSpan* spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
            const GoldCache& cache, int64_t kept_tokens, int head_size, bool steady);
  // From shared rows.
  Rebuilder(Context& context, const DeviceSpan* spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
            const SharedPages& pages, int head_size, bool steady);

  // Whether Rebuild leaves the norms to attention (UnfinishedNorms).
  bool LeavesNorms() const { return fused_ && weights_.rope_base == 0; }
  // Positions of a chunk: few enough for the scratch memory, enough to keep all multiprocessors at work.
  int64_t ChunkPositions() const;

  // Rows of a chunk in scratch memory: for each run one row for the position before it, then its positions.
  struct Rows {
    int64_t count = 0;
    const ChunkRow* located = nullptr;
    void* sides[2] = {};  // [count, D]: keys and values before their norms
    DType dtype = DType::kF32;
    float* factors = nullptr;  // as StoredKeys::row_factors, if norms are left
  };
  // Valid until the caller's frame ends.
  Rows Rebuild(const RebuiltChunk& chunk);

  // Norms and rotates the rows, and stores them in the pages of the full tier or in the same rows of `keys` and
  // `values`.
  void Finish(const Rows& rows, void* keys, void* values, DType dtype, bool into_pages);

  // Makes the shared rows of the chunk for all `layers`, of which this rebuilder has one; pages[i] is for layers[i].
  void MakeSharedRows(const RebuiltChunk& chunk, absl::Span<const GoldKvWeights> layers,
                      absl::Span<const SharedPages> pages);

 private:
  // What all layers share, made the fused way.
  struct FusedInputs {
    void* xo;           // [rows, D] of T
    void* kk;           // [rows, D] of T, to be scaled by squares
    float* squares;     // [D / fused::kKeyColumns, rows]
    void* hidden;       // [rows, mix_width] of T, if a mix table was given
    int32_t* counters;  // [layers, CounterCount(rows)], zero
  };

  Rebuilder(Context& context, const DeviceSpan* spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
            int head_size, bool fused, bool steady);

  Stream stream() const { return static_cast<Stream>(context_.stream()); }
  CompressedRows Compressed() const { return {cache_->c.data, cache_->c.dtype, shared_.key_compressed.in()}; }

  // Rows of a chunk, and their number.
  const ChunkRow* Locate(const RebuiltChunk& chunk, int64_t& count);

  // The plain way.
  void RebuildPlain(const Rows& rows);
  void MakeXo(const ChunkRow* located, int64_t rows, float* xo);
  void MakeKk(const ChunkRow* located, int64_t rows, float* kk);
  const void* Rounded(const void* x, DType dtype, int64_t count, DType wanted);
  template <typename Weight>
  shared_rows::TanhParts NewTanhRows(int64_t rows);
  template <typename Weight>
  void MakeMixTanh(const ChunkRow* located, int64_t rows, const shared_rows::TanhParts& tanh_rows);
  template <typename Weight>
  void MakeSides(int64_t rows, const float* kk, const float* xo, const shared_rows::TanhParts& tanh_rows,
                 bool tanh_known, float* const (&mixed)[2]);
  template <typename Weight>
  void MakeUp(int64_t rows, const shared_rows::TanhParts& tanh_rows, float* const (&mixed)[2]);

  // The fused way.
  template <typename T>
  FusedInputs MakeFusedInputs(const ChunkRow* located, int64_t rows, const float* mix_table, int64_t mix_width,
                              int layers);
  template <typename T>
  fused::LoraArguments FusedSides(const Rows& rows, const FusedInputs& inputs, const void* hidden, int32_t* counters);

  // Calls use(rebuilder of the layer, its pages, its index).
  template <typename Use>
  void ForEachLayer(absl::Span<const GoldKvWeights> layers, absl::Span<const SharedPages> pages, Use use);
  template <typename Kk>
  void StoreInputs(const ChunkRow* located, int64_t count, Kk* kk, const float* squares, int square_blocks,
                   const SharedPages& pages);
  template <typename T>
  void MakeSharedRowsFused(const ChunkRow* located, int64_t count, absl::Span<const GoldKvWeights> layers,
                           absl::Span<const SharedPages> pages);
  void MakeSharedRowsPlain(const ChunkRow* located, int64_t count, absl::Span<const GoldKvWeights> layers,
                           absl::Span<const SharedPages> pages);

  Context& context_;
  const DeviceSpan* const spans_;
  const bool steady_;
  const GoldSharedWeights& shared_;
  const GoldKvWeights& weights_;
  const GoldCache* cache_ = nullptr;  // either this or `pages_`
  const SharedPages* pages_ = nullptr;
  int64_t kept_tokens_ = 0;
  const int head_size_;
  const int64_t width_;
  const bool fused_;
};

}  // namespace goldfinch::cuda

#endif  // GOLDFINCH_KERNELS_CUDA_GOLD_REBUILDER_H_
