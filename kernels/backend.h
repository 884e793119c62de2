// The maths of every model on one device: about twenty ops, each coarse enough to be one fused kernel.
//
// Ops run in call order on one queue; one thread at a time may call. All tensors of an op are in the back end's memory,
// dense, and do not overlap unless an op says so. Host memory that an op is given is read before the call returns.
// Misuse of shapes is a CHECK. Device faults surface in status and Synchronize and are final.
//
// Types: weights keep the type of the file (vectors are fp32), states are fp32, and activations, marked `act`, are of
// the type that activation_dtype() names. Rows marked `fp32 or act` may be either: the residual stream stays fp32. Sums
// are fp32 in any case.
//
// NaN in an input reaches every output that depends on it, and no other. Values stored as fp16 beyond its range become
// its largest. Numbers of an 8-bit row depend on the whole row (CompressedRowWidth). A slot is in one span of a call at
// most.
//
// Results are batch-invariant: an output row is the same whatever other rows share the call and however the rows of a
// sequence are cut into calls: bit for bit on the CPU (docs/decisions/0002-batch-invariant-products.md), to the
// rounding of the types on CUDA (docs/decisions/0010-cuda-back-end.md).
//
// Notation: `rows` rows of several sequences lie back to back; D = model width; N = head size; H = D / N heads;
// prev(x) = the row before x in its sequence.
#ifndef GOLDFINCH_KERNELS_BACKEND_H_
#define GOLDFINCH_KERNELS_BACKEND_H_

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/queue.h"
#include "kernels/tensor.h"

namespace goldfinch {

// Rows [row_begin, row_begin + row_count) of a call belong to one sequence and follow each other in it.
struct RowSpan {
  int32_t slot = 0;       // the sequence's slot in every state tensor
  int32_t row_begin = 0;  // spans are in row order, do not overlap, and have at least one row
  int32_t row_count = 0;
  int64_t position = 0;            // of the first row in its sequence
  const int32_t* pages = nullptr;  // host memory: the sequence's page table, for ops on paged caches
  const int32_t* kept = nullptr;   // the same, of what is kept beside the compressed cache (tiers T2 and T3)
};
using RowSpans = absl::Span<const RowSpan>;

// A weight matrix as the checkpoint stores it; it is read in place. How quantized ones (kInt8, kInt4) lie in either
// layout is in kernels/quantize.h.
struct Matrix {
  enum class Layout : uint8_t {
    kOutIn,  // [out, in]: linear layers
    kInOut,  // [in, out]: LoRA factors
  };
  ConstTensor data;
  Layout layout = Layout::kOutIn;
  ConstTensor scales = {};  // of quantized ones: kernels/quantize.h

  explicit operator bool() const { return static_cast<bool>(data); }
  int64_t out() const { return data.dim(layout == Layout::kOutIn ? 0 : 1); }
  int64_t in() const { return data.dim(layout == Layout::kOutIn ? 1 : 0); }
};

enum class Activation : uint8_t { kNone, kRelu2, kSilu, kSigmoid, kTanh };

// What is done to a product before it is stored:
//   out = (accumulate ? out : 0) + multiply * activation(x W + bias)
struct Epilogue {
  Activation activation = Activation::kNone;
  ConstTensor bias = {};      // [out] fp32 or not given
  ConstTensor multiply = {};  // [rows, out] fp32 or act, or not given; may be `out` itself
  bool accumulate = false;
};

struct NormWeights {
  ConstTensor weight;  // [D] fp32
  ConstTensor bias;    // [D] fp32
};

// Data-dependent token shift of G targets ("ddlerp", arXiv 2404.05892 eq. 13-15), m = LoRA rank.
struct DdLerpWeights {
  ConstTensor mix_x;  // [D] fp32: mix of the LoRA's input
  Matrix down;        // [D, G*m] kInOut
  ConstTensor up;     // [G, m, D]
  ConstTensor mix;    // [G, D] fp32
};

struct WkvOptions {
  bool one_minus_decay_keys = false;  // k *= 1 - exp(-exp(w)) (Finch-C2)
  bool accumulate = false;            // out += y instead of out = y
};

// Elements of a row of the compressed cache, in its pages and from stage to stage. A row of fp32, fp16 or bf16 is its
// `numbers`. A row of kInt8 is as many signed bytes q and the row's scale behind them, bf16 with the low byte first:
// number i is q_i * scale. With the largest magnitude of the row as m,
//   scale = m / 127,  q = c / scale within -127 .. 127,
// quotients in fp32, rounded to nearest even, to bf16 and to an integer; q is 0 where the scale is. So no number is off
// by more than half a scale, but in rows whose m is below 2^-118, where bf16 runs out of digits. A row with a NaN or an
// infinity has zeros and the scale NaN (0x7FC0). Every back end writes the same bytes.
constexpr int64_t CompressedRowWidth(DType dtype, int64_t numbers) {
  return dtype == DType::kInt8 ? numbers + SizeOf(DType::kBf16) : numbers;
}

// The compressed cache of all sequences, in pages of `page_tokens` positions.
struct GoldCache {
  Tensor ids;  // [pages, page_tokens] u16 or i32
  Tensor c;    // [pages, page_tokens, CompressedRowWidth of D/16] fp32, fp16, bf16 or kInt8
  int64_t page_tokens() const { return ids.dim(1); }
};

// What all GOLD layers share to rebuild keys and values: x0 = LN0(emb[id]), kk = rms(W_b [x0; c]).
struct GoldSharedWeights {
  ConstTensor embedding;  // [vocab, D]
  NormWeights ln0;
  Matrix key_compressed;  // [D, D/16] kOutIn: the columns of W_b that meet c
  ConstTensor key_table;  // [vocab, D] act: W_b x0 by id, valid for every id in the cache (see GoldKeyTableRows)
};

// Key/value side of one GOLD layer (arXiv 2407.12077 section 3.3), m = LoRA rank.
struct GoldKvWeights {
  ConstTensor mix_lora;     // [D] fp32, maa_v_cache: mix of the LoRA's input
  ConstTensor mix_key;      // [D] fp32
  ConstTensor mix_value;    // [D] fp32
  Matrix mix_down;          // [D, 2m] kInOut, order key, value
  ConstTensor mix_up;       // [2, m, D]
  Matrix key_down, key_up;  // [D, m'] and [m', D] kInOut
  Matrix value_down, value_up;
  NormWeights ln_key, ln_value;
  // [vocab, 2, 2m] fp32, valid for every id in the cache (see GoldMixTableRows): with xo = rms(x0), what an id adds to
  // the input of the mix LoRA's tanh at its own position, (xo * (1 - mix_lora)) mix_down, and at the next, (xo *
  // mix_lora) mix_down.
  ConstTensor mix_table;
  double rope_base = 0;  // 0: no rotary embedding
};

struct RowCopy {
  int64_t from;
  int64_t to;
};

// Keys and values of one ordinary attention layer, in pages.
struct KvCache {
  Tensor keys;    // [pages, page_tokens, D] fp32, fp16 or bf16
  Tensor values;  // [pages, page_tokens, D]
  int64_t page_tokens() const { return keys.dim(1); }
};

// What tier T2 keeps beside the compressed cache: of each position what GOLD attention derives from ids and c before it
// is spread over D columns. That is kk (in act) and the id, and of each layer the tanh rows of its mix, key and value
// LoRAs; a back end may keep statistics of the norms with them. The order within a page is the back end's own.
struct GoldSharedRows {
  void* data = nullptr;  // in the back end's memory, aligned to 256 bytes: pages [pages, page_bytes]
  int64_t pages = 0;
  int64_t page_bytes = 0;  // at least Backend::GoldSharedPageBytes, a multiple of 256
  int64_t page_tokens = 0;
};

// Added to one logit.
struct LogitChange {
  int32_t id = 0;
  double amount = 0;
};

// How one row's token is chosen: worker/stage/sampler.h says what the numbers mean, steps 1 to 5.
struct SampleRow {
  double temperature = 1;                      // 0: the best
  double top_p = 1;                            // 1 keeps all
  int64_t top_k = 0;                           // 0 keeps all
  double min_p = 0;                            // 0 keeps all
  double uniform = 0;                          // in [0, 1): the draw
  absl::Span<const LogitChange> changes = {};  // in this order; ids in [0, vocab)
  absl::Span<const int32_t> banned = {};       // besides ids from `limit` on and `holes`
};

// What ops take of the memory besides what Allocate gave: libraries and their workspaces, scratch. An allowance to plan
// with, which ops of the shapes of models do not exceed.
struct OpMemory {
  int64_t fixed_bytes = 0;
  int64_t bytes_per_row = 0;        // of the largest call
  int64_t bytes_per_logit_row = 0;  // of MatMul with the head, and Sample
};

class Backend {
 public:
  virtual ~Backend() = default;

  // "cpu, 2 threads, AVX3".
  virtual std::string Describe() const = 0;
  // Host threads that ops run on; work beside them (reading files) should use as many.
  virtual int threads() const = 0;
  // Of activations: fp32 on the CPU.
  virtual DType activation_dtype() const = 0;
  // Whether MatMul takes quantized weights.
  virtual bool multiplies_quantized() const = 0;

  // --- Memory -------------------------------------------------------------------------------------------------------
  // Zeroed memory, aligned to 256 bytes, released when the last reference goes. The CPU commits it as it is touched.
  // RESOURCE_EXHAUSTED names `purpose` and the size.
  virtual absl::StatusOr<std::shared_ptr<void>> Allocate(int64_t bytes, std::string_view purpose) = 0;
  // What allocations can take now, as far as the device knows; the CPU names the machine's memory.
  virtual int64_t FreeBytes() const = 0;
  // Of the whole device, whoever uses it.
  virtual int64_t TotalBytes() const = 0;
  // For a model of this width.
  virtual OpMemory PlanOps(int64_t width, int64_t vocab_size) const = 0;
  // True where ops can read host memory in place, so that mapped weights need no copy.
  virtual bool reads_host_memory() const = 0;
  virtual void CopyFromHost(const void* host, Tensor to) = 0;
  // Waits for the ops before it.
  virtual void CopyToHost(ConstTensor from, void* host) = 0;
  virtual void Zero(Tensor tensor) = 0;
  // Same type and shape.
  virtual void Copy(ConstTensor from, Tensor to) = 0;
  virtual absl::Status Synchronize() = 0;

  // Runs `ops`: calls of this back end that give the host nothing (Zero, Copy, Embed to KvAttention) and have no other
  // lasting effect, for it may run them more than once, and must find them the same each time. Page tables stay as they
  // are until Step returns. `repeats`: more steps with tensors of these shapes at these addresses are to come, as in
  // decoding; what launching costs may then be paid once for many of them.
  virtual void Submit(bool repeats, absl::FunctionRef<void()> ops) = 0;

  // --- Queues -------------------------------------------------------------------------------------------------------
  // That of the ops.
  virtual Queue& queue() = 0;
  // One beside it. It may be used by another thread than the ops; the back end must outlive it.
  virtual std::unique_ptr<Queue> MakeQueue() = 0;
  // Memory of the host that queues copy from and to without the host's waiting; not zeroed. Errors as Allocate.
  virtual absl::StatusOr<std::shared_ptr<void>> AllocateStaging(int64_t bytes, std::string_view purpose) = 0;
  // The fault that Synchronize would tell of, if one is known yet. Does not wait; any thread.
  virtual absl::Status status() const = 0;

  // --- Rows ---------------------------------------------------------------------------------------------------------
  // out[i] = table[ids[i]].
  virtual void Embed(ConstTensor table,              // [vocab, D]
                     absl::Span<const int32_t> ids,  // host memory, each in [0, vocab)
                     Tensor out) = 0;                // [rows, D]
  // to[copy.to] = from[copy.from] for every copy. `from` and `to` may be the same tensor if copies only move rows up
  // (copy.to <= copy.from) and are sorted.
  virtual void CopyRows(ConstTensor from,                  // [n, width] fp32 or act
                        absl::Span<const RowCopy> copies,  // host memory
                        Tensor to) = 0;                    // [m, width] fp32 or act
  // to = from, rounded as the caches round: to nearest, ties to even.
  virtual void Convert(ConstTensor from,  // fp32 or act
                       Tensor to) = 0;  // of the same shape; fp32, fp16 or bf16. Or kInt8 [rows, CompressedRowWidth of
                                        // n] for [rows, n]: rows of the compressed cache
  // LayerNorm over each of `groups` equal parts of a row, then weight and bias, then times `gate` if given.
  // `out` may be `x` or `gate`.
  virtual void GroupNorm(ConstTensor x,  // [rows, D] fp32 or act
                         int groups, NormWeights norm, float epsilon,
                         ConstTensor gate,  // [rows, D] act, or not given
                         Tensor out) = 0;   // [rows, D] fp32 or act

  // --- Products -----------------------------------------------------------------------------------------------------
  // x is rounded to the weight's type where the back end multiplies in that type (CUDA: fp16 and bf16 weights); to 8
  // bits, with a scale for each 32 neighbors of a row, where the weight is quantized (an infinity then counts as NaN).
  virtual void MatMul(ConstTensor x,  // [rows, in] fp32 or act
                      Matrix weight, const Epilogue& epilogue,
                      Tensor out) = 0;  // [rows, out] fp32 or act

  // --- Token shift --------------------------------------------------------------------------------------------------
  // out[g] = x + (prev(x) - x) * mix[g]. `shift` holds each sequence's row before the span and gets its last row.
  virtual void TokenShift(ConstTensor x,  // [rows, D] act
                          RowSpans spans,
                          Tensor shift,     // [slots, D] fp32
                          ConstTensor mix,  // [G, D] fp32
                          Tensor out) = 0;  // [G, rows, D] act
  // out[g] = x + (prev(x) - x) * (mix[g] + tanh((x + (prev(x) - x) * mix_x) down)_g up[g]). `shift` as above.
  virtual void DdLerp(ConstTensor x,  // [rows, D] act
                      RowSpans spans,
                      Tensor shift,  // [slots, D] fp32
                      const DdLerpWeights& weights,
                      Tensor out) = 0;  // [G, rows, D] act

  // --- Linear attention ---------------------------------------------------------------------------------------------
  // Per head, with S = the state: y = r (S + diag(u) k^T v); S = diag(exp(-exp(w))) S + k^T v (arXiv 2404.05892 eq.
  // 19).
  virtual void WkvForward(ConstTensor r, ConstTensor k, ConstTensor v,  // [rows, D] act
                          ConstTensor w,                                // [rows, D] act, or [1, D] fp32 if constant
                          ConstTensor bonus,                            // u [H, N] fp32, or not given (0)
                          RowSpans spans,
                          Tensor state,  // [slots, H, N (key), N (value)] fp32
                          const WkvOptions& options,
                          Tensor out) = 0;  // [rows, D] act

  // --- GOLD ---------------------------------------------------------------------------------------------------------
  // Writes ids and c rows of every span into its pages, from span.position on.
  virtual void GoldAppend(absl::Span<const int32_t> ids,  // [rows], host memory
                          ConstTensor c,  // rows of the cache's type, or [rows, D/16] fp32 or act if it is not kInt8
                          RowSpans spans, const GoldCache& cache) = 0;
  // table[id] = W_b's x0 columns times LN0(emb[id]), for every id given.
  virtual void GoldKeyTableRows(absl::Span<const int32_t> ids,  // host memory
                                ConstTensor embedding, NormWeights ln0,
                                Matrix key_x0,      // [D, D] kOutIn: the columns of W_b that meet x0
                                Tensor table) = 0;  // [vocab, D] act
  // The rows of one layer's GoldKvWeights::mix_table, for every id given.
  virtual void GoldMixTableRows(absl::Span<const int32_t> ids,  // host memory
                                ConstTensor embedding, NormWeights ln0,
                                ConstTensor mix_lora,  // [D] fp32
                                Matrix mix_down,       // [D, 2m] kInOut
                                Tensor table) = 0;     // [vocab, 2, 2m] fp32
  // Causal softmax attention of each row over the cache positions 0 .. its own, scale 1/sqrt(N). Keys and values are
  // rebuilt a tile of positions at a time (tier T0). `q` is the finished query (normed, rotated).
  virtual void GoldAttention(ConstTensor q,  // [rows, D] act
                             RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                             const GoldCache& cache, int head_size,
                             Tensor out) = 0;  // [rows, D] act
  // Rebuilds the keys and values of the spans' positions, all of which are in `cache`, and keeps them at RowSpan::kept
  // (tier T3): KvAttention over `kv` is then what GoldAttention over `cache` is, but for the rounding to kv's type.
  // (row_begin counts positions here; slots are not looked at.)
  virtual void GoldMakeKeysValues(RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                                  const GoldCache& cache, int head_size, const KvCache& kv) = 0;
  // Of GoldSharedRows for these layers.
  virtual int64_t GoldSharedPageBytes(int64_t width, absl::Span<const GoldKvWeights> layers, int head_size,
                                      int64_t page_tokens) const = 0;
  // Derives the rows of the spans' positions, all of which are in `cache`, for all `layers`, and keeps them at
  // RowSpan::kept (tier T2). Spans as for GoldMakeKeysValues.
  virtual void GoldMakeSharedRows(RowSpans spans, const GoldSharedWeights& shared,
                                  absl::Span<const GoldKvWeights> layers, const GoldCache& cache, int head_size,
                                  const GoldSharedRows& rows) = 0;
  // As GoldAttention with layers[layer], over rows that GoldMakeSharedRows kept with these layers, at RowSpan::kept: on
  // the CPU bit for bit, on CUDA to the rounding of the types. The compressed cache is not looked at.
  virtual void GoldSharedAttention(ConstTensor q,  // [rows, D] act
                                   RowSpans spans, const GoldSharedWeights& shared,
                                   absl::Span<const GoldKvWeights> layers, int layer, const GoldSharedRows& rows,
                                   int head_size,
                                   Tensor out) = 0;  // [rows, D] act

  // --- Ordinary attention -------------------------------------------------------------------------------------------
  // Rotates adjacent pairs within each head by position * base^(-2i/N), angles in double. In place.
  virtual void Rope(Tensor x,  // [rows, D] act
                    RowSpans spans, int head_size, double base) = 0;
  virtual void KvAppend(ConstTensor k, ConstTensor v,  // [rows, D] act
                        RowSpans spans, const KvCache& cache) = 0;
  // As GoldAttention over stored keys and values.
  virtual void KvAttention(ConstTensor q,  // [rows, D] act
                           RowSpans spans, const KvCache& cache, int head_size,
                           Tensor out) = 0;  // [rows, D] act

  // --- Sampling -----------------------------------------------------------------------------------------------------
  // Whether Sample takes logits of so many ids.
  virtual bool can_sample(int64_t vocab) const = 0;
  // tokens[i] is drawn from row i by rows[i]; -1 where a logit of the row is not finite. Ids from `limit` on and those
  // in `holes` are never drawn; at least one id is left. Waits for the ops before it.
  virtual void Sample(ConstTensor logits,  // [rows, vocab] fp32
                      int64_t limit, absl::Span<const int32_t> holes, absl::Span<const SampleRow> rows,
                      absl::Span<int32_t> tokens) = 0;  // [rows]; host memory
};

// `threads` 0: one per core.
std::unique_ptr<Backend> MakeCpuBackend(int threads);

}  // namespace goldfinch

#endif  // GOLDFINCH_KERNELS_BACKEND_H_
