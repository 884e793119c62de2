// The ops of every model on one device: about twenty, each coarse enough to be one fused kernel.
//
// Ops run in call order on the main queue of the ComputeDevice that a Backend is; one thread at a time may call. All
// tensors of an op are in the device's memory, dense, and do not overlap unless an op says so. Host memory that an op
// is given is read before the call returns. Arguments that do not fit each other are a CHECK. Device faults surface in
// status() and Synchronize() and are final.
//
// Types: weights keep the type of the file (vectors are fp32), states are fp32, and activations, marked `act`, have
// the type activation_dtype(). Rows marked `fp32 or act` may be either: the residual stream stays fp32. Sums are fp32
// in every case.
//
// A NaN in an input reaches every output that depends on it, and no other. Values beyond fp16's range are clamped
// to its largest finite value. The numbers of an 8-bit row depend on the whole row (CompressedRowWidth). At most one
// span of a call has a given slot.
//
// Results are batch-invariant: an output row is the same whatever other rows share the call and however the rows of a
// sequence are cut into calls: bit for bit on the CPU (docs/decisions/0002-batch-invariant-products.md), to the
// rounding of the types on CUDA (docs/decisions/0010-cuda-back-end.md).
//
// Notation: `rows` rows of several sequences lie back to back; D = model width; N = head size; H = D / N heads;
// m = rank of a LoRA; prev(x) = the row before x in its sequence. Tiers (docs/GLOSSARY.md): how much of a sequence is
// stored for GOLD attention beside the compressed cache.
//
// A new op is written in these places. Its Do method is pure virtual, so the compiler names each back end that lacks
// it. Nothing but this list tells of missing checks, a missing reference or missing tests:
//   - here, twice: the public method with its contract, and the private virtual one of the same name with Do before it;
//   - backend.cc: what is CHECKed of its arguments, once for all back ends;
//   - CpuBackend and CudaBackend (cpu/cpu_backend.cc, cuda/cuda_backend.cc), which call the kernel in a file of the
//     same name in both folders, declared in their ops.h;
//   - the two back ends that wrap another, FakeDevice and the profiler (CONTRIBUTING.md says where they are);
//   - reference.h and a backend_*_test.cc: the same in plain double code, and the comparison.
#ifndef GOLDFINCH_KERNELS_BACKEND_H_
#define GOLDFINCH_KERNELS_BACKEND_H_

#include <cstdint>
#include <limits>
#include <memory>

#include "absl/types/span.h"
#include "kernels/compute_device.h"
#include "kernels/sample_row.h"
#include "kernels/tensor.h"

namespace goldfinch {

// Rows [row_begin, row_begin + row_count) of a call belong to one sequence and follow each other in it.
struct RowSpan {
  int32_t slot = 0;       // the sequence's slot in every state tensor
  int32_t row_begin = 0;  // spans are in row order, do not overlap, and have at least one row
  int32_t row_count = 0;
  int64_t position = 0;  // of the first row in its sequence
  // Page tables of the sequence, in host memory, for ops on paged caches: of the cache itself, and of what the shared
  // and full tiers keep beside the compressed cache.
  const int32_t* pages = nullptr;
  const int32_t* kept_pages = nullptr;
  int64_t kept_end = std::numeric_limits<int64_t>::max();  // later positions have no shared rows: GoldSharedRows::rest
};
using RowSpans = absl::Span<const RowSpan>;

// A weight matrix as the checkpoint stores it; it is read in place. kernels/quantize.h says how quantized ones (kInt8,
// kInt4) lie in either layout.
struct Matrix {
  enum class Layout : uint8_t {
    kOutIn,  // [out, in]: linear layers
    kInOut,  // [in, out]: LoRA factors
  };
  ConstTensor data;
  Layout layout = Layout::kOutIn;
  ConstTensor scales = {};  // given if the matrix is quantized: kernels/quantize.h

  explicit operator bool() const { return static_cast<bool>(data); }
  int64_t out() const { return data.dim(layout == Layout::kOutIn ? 0 : 1); }
  int64_t in() const { return data.dim(layout == Layout::kOutIn ? 1 : 0); }
};

enum class Activation : uint8_t { kNone, kRelu2, kSilu, kSigmoid, kTanh };

// What is done to a product before it is stored:
//   out = (accumulate ? out : 0) + multiply * activation(x W + bias)
struct Epilogue {
  Activation activation = Activation::kNone;
  ConstTensor bias = {};      // [out] fp32, or not given
  ConstTensor multiply = {};  // [rows, out] fp32 or act, or not given; may be `out` itself
  bool accumulate = false;
};

struct NormWeights {
  ConstTensor weight;  // [D] fp32
  ConstTensor bias;    // [D] fp32
};

// Data-dependent token shift to G targets ("ddlerp", arXiv 2404.05892 eq. 13-15).
struct DdLerpWeights {
  ConstTensor mix_x;  // [D] fp32: the mix that makes the LoRA's input
  Matrix down;        // [D, G*m] kInOut
  ConstTensor up;     // [G, m, D]
  ConstTensor mix;    // [G, D] fp32
};

struct WkvOptions {
  bool one_minus_decay_keys = false;  // k *= 1 - exp(-exp(w)) (Finch-C2)
  bool accumulate = false;            // out += y instead of out = y
};

// Elements that a compressed-cache row of `numbers` values takes, in its pages and between stages. A row of fp32, fp16
// or bf16 is just its numbers. A row of kInt8 has a signed byte q for each number and the row's scale after them, in
// bf16 with the low byte first: number i is q_i * scale. With a the largest magnitude of the row,
//   scale = a / 127,  q = c / scale within -127 .. 127.
// Quotients are taken in fp32; the scale is rounded to bf16 and q to an integer, both to nearest even; if the scale
// is 0, q is 0. So no number is off by more than half a scale, except in rows with a below 2^-118, where bf16 runs out
// of digits. A row that contains a NaN or an infinity has zeros and the scale NaN (0x7FC0). Every back end writes the
// same bytes.
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
  Matrix key_compressed;  // [D, D/16] kOutIn: the columns of W_b that c is multiplied by
  ConstTensor key_table;  // [vocab, D] act: W_b x0 by id; every id in the cache has its row (GoldKeyTableRows)
};

// Key and value side of one GOLD layer (arXiv 2407.12077 section 3.3).
struct GoldKvWeights {
  ConstTensor mix_lora;     // [D] fp32, maa_v_cache: the mix that makes the LoRA's input
  ConstTensor mix_key;      // [D] fp32
  ConstTensor mix_value;    // [D] fp32
  Matrix mix_down;          // [D, 2m] kInOut: the key's m columns first, then the value's
  ConstTensor mix_up;       // [2, m, D]
  Matrix key_down, key_up;  // [D, m'] and [m', D] kInOut
  Matrix value_down, value_up;
  NormWeights ln_key, ln_value;
  // [vocab, 2, 2m] fp32; every id in the cache has its rows (GoldMixTableRows). With xo = rms(x0), they are what an id
  // adds to the input of the mix LoRA's tanh at its own position, (xo * (1 - mix_lora)) mix_down, and at the next one,
  // (xo * mix_lora) mix_down.
  ConstTensor mix_table;
  double rope_base = 0;  // 0: no rotary embedding
};

// Row numbers of CopyRows.
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

// What the shared tier keeps beside the compressed cache: for each position, what GOLD attention derives from ids and c
// before it is spread over D columns. That is kk (in act) and the id, and for each layer the tanh rows of its mix, key
// and value LoRAs. A back end may keep statistics of the norms with them, and chooses the order within a page.
struct GoldSharedRows {
  void* data = nullptr;  // [pages, page_bytes] in the device's memory, aligned to 256 bytes
  int64_t pages = 0;
  int64_t page_bytes = 0;  // at least Backend::GoldSharedPageBytes, a multiple of 256
  int64_t page_tokens = 0;
  // For attention alone: where it finds what the rows of positions from RowSpan::kept_end on would be made of, with
  // RowSpan::pages. Null: every position has rows.
  const GoldCache* rest = nullptr;
};

// Memory that ops take besides what Allocate gave: libraries and their workspaces, scratch. An allowance to plan with,
// which ops of the shapes of models do not exceed.
struct OpMemory {
  int64_t fixed_bytes = 0;
  int64_t bytes_per_row = 0;        // for each row of the largest call
  int64_t bytes_per_logit_row = 0;  // for each row of MatMul with the head, and of Sample
};

class Backend : public ComputeDevice {
 public:
  // The type of activations: fp32 on the CPU.
  DType activation_dtype() const { return activation_dtype_; }
  // Host threads that ops run on. Work beside them (reading files) should use as many.
  virtual int threads() const = 0;
  // Computes on at most so many of the threads that it was made with, from the next op on. At least one; nothing else
  // changes, results included. Back ends that compute on a device ignore it.
  virtual void UseThreads(int /*threads*/) {}
  // Whether MatMul accepts quantized weights.
  virtual bool multiplies_quantized() const = 0;
  // The memory that ops take beside tensors, for a model of this width and vocabulary.
  virtual OpMemory PlanOps(int64_t width, int64_t vocab_size) const = 0;

  // --- Rows ---------------------------------------------------------------------------------------------------------
  // out[i] = table[ids[i]].
  void Embed(ConstTensor table,              // [vocab, D]
             absl::Span<const int32_t> ids,  // host memory, each in [0, vocab)
             Tensor out);                    // [rows, D] fp32
  // to[copy.to] = from[copy.from] for every copy. `from` and `to` may be the same tensor if copies only move rows up
  // (copy.to <= copy.from) and are sorted.
  void CopyRows(ConstTensor from,                  // [n, width] fp32 or act
                absl::Span<const RowCopy> copies,  // host memory
                Tensor to);                        // [m, width] fp32 or act
  // to = from, rounded as the caches round: to nearest, ties to even. `to` is fp32, fp16 or bf16 of the same shape, or
  // kInt8 [rows, CompressedRowWidth of n] for [rows, n]: rows of the compressed cache.
  void Convert(ConstTensor from,  // fp32 or act
               Tensor to);
  // LayerNorm over each of `groups` equal parts of a row, then weight and bias, then times `gate` if given.
  // `out` may be `x` or `gate`.
  void GroupNorm(ConstTensor x,  // [rows, D] fp32 or act
                 int groups, NormWeights norm, float epsilon,
                 ConstTensor gate,  // [rows, D] act, or not given
                 Tensor out);       // [rows, D] fp32 or act

  // --- Products -----------------------------------------------------------------------------------------------------
  // x is rounded to the weight's type where the back end multiplies in that type (CUDA: fp16 and bf16 weights). For a
  // quantized weight it is rounded to 8 bits, with a scale for each 32 neighbors of a row; an infinity then counts as
  // NaN.
  void MatMul(ConstTensor x,  // [rows, in] fp32 or act
              Matrix weight, const Epilogue& epilogue,
              Tensor out);  // [rows, out] fp32 or act

  // --- Token shift --------------------------------------------------------------------------------------------------
  // out[g] = x + (prev(x) - x) * mix[g]. `shift` holds the row before each span and gets the last row of the span.
  void TokenShift(ConstTensor x,  // [rows, D] act
                  RowSpans spans,
                  Tensor shift,     // [slots, D] fp32
                  ConstTensor mix,  // [G, D] fp32
                  Tensor out);      // [G, rows, D] act
  // out[g] = x + (prev(x) - x) * (mix[g] + tanh((x + (prev(x) - x) * mix_x) down)_g up[g]). `shift` as above.
  void DdLerp(ConstTensor x,  // [rows, D] act
              RowSpans spans,
              Tensor shift,  // [slots, D] fp32
              const DdLerpWeights& weights,
              Tensor out);  // [G, rows, D] act

  // --- Linear attention ---------------------------------------------------------------------------------------------
  // For each head, with S its state: y = r (S + diag(u) k^T v); S = diag(exp(-exp(w))) S + k^T v (arXiv 2404.05892
  // eq. 19).
  void WkvForward(ConstTensor r, ConstTensor k, ConstTensor v,  // [rows, D] act
                  ConstTensor w,                                // [rows, D] act, or [1, D] fp32 if constant
                  ConstTensor bonus,                            // u [H, N] fp32, or not given (0)
                  RowSpans spans,
                  Tensor state,  // [slots, H, N (key), N (value)] fp32
                  const WkvOptions& options,
                  Tensor out);  // [rows, D] act

  // --- GOLD ---------------------------------------------------------------------------------------------------------
  // Writes the ids and c rows of every span into its pages, from span.position on.
  void GoldAppend(absl::Span<const int32_t> ids,  // [rows], host memory
                  ConstTensor c,  // rows of the cache's type; unless it is kInt8, also [rows, D/16] fp32 or act
                  RowSpans spans, const GoldCache& cache);
  // table[id] = the left D columns of W_b times LN0(emb[id]), for every id given.
  void GoldKeyTableRows(absl::Span<const int32_t> ids,  // host memory
                        ConstTensor embedding, NormWeights ln0,
                        Matrix key_x0,  // [D, D] kOutIn: the columns of W_b that x0 is multiplied by
                        Tensor table);  // [vocab, D] act
  // The rows of one layer's GoldKvWeights::mix_table, for every id given.
  void GoldMixTableRows(absl::Span<const int32_t> ids,  // host memory
                        ConstTensor embedding, NormWeights ln0,
                        ConstTensor mix_lora,  // [D] fp32
                        Matrix mix_down,       // [D, 2m] kInOut
                        Tensor table);         // [vocab, 2, 2m] fp32
  // The compressed tier: causal softmax attention of each row over the cache positions 0 .. its own, scale 1/sqrt(N).
  // Keys and values are rebuilt a tile of positions at a time. `q` is the finished query (normed, rotated).
  void GoldAttention(ConstTensor q,  // [rows, D] act
                     RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                     const GoldCache& cache, int head_size,
                     Tensor out);  // [rows, D] act
  // The full tier: rebuilds the keys and values of the spans' positions, all of which are in `cache`, and stores them
  // at RowSpan::kept_pages of `kv`. KvAttention over `kv` then computes what GoldAttention over `cache` does, except
  // for the rounding to kv's type. row_begin counts positions here, and slots are ignored.
  void GoldMakeKeysValues(RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                          const GoldCache& cache, int head_size, const KvCache& kv);
  // Whether GoldSharedAttention takes GoldSharedRows::rest.
  virtual bool shares_in_part() const { return false; }
  // The least GoldSharedRows::page_bytes for these layers.
  virtual int64_t GoldSharedPageBytes(int64_t width, absl::Span<const GoldKvWeights> layers, int head_size,
                                      int64_t page_tokens) const = 0;
  // The shared tier: derives the rows of the spans' positions, all of which are in `cache`, for all `layers`, and
  // stores them at RowSpan::kept_pages of `rows`. Spans as for GoldMakeKeysValues.
  void GoldMakeSharedRows(RowSpans spans, const GoldSharedWeights& shared, absl::Span<const GoldKvWeights> layers,
                          const GoldCache& cache, int head_size, const GoldSharedRows& rows);
  // GoldAttention with layers[layer], over the rows that GoldMakeSharedRows stored for these layers at
  // RowSpan::kept_pages. The result is the same bit for bit on the CPU, to the rounding of the types on CUDA. The
  // compressed cache is not read, unless rows.rest is given.
  void GoldSharedAttention(ConstTensor q,  // [rows, D] act
                           RowSpans spans, const GoldSharedWeights& shared, absl::Span<const GoldKvWeights> layers,
                           int layer, const GoldSharedRows& rows, int head_size,
                           Tensor out);  // [rows, D] act

  // --- Ordinary attention -------------------------------------------------------------------------------------------
  // Rotates adjacent pairs within each head by position * base^(-2i/N), angles in double. In place.
  void Rope(Tensor x,  // [rows, D] act
            RowSpans spans, int head_size, double base);
  // Writes the k and v rows of every span into its pages, from span.position on.
  void KvAppend(ConstTensor k, ConstTensor v,  // [rows, D] act
                RowSpans spans, const KvCache& cache);
  // As GoldAttention, over stored keys and values.
  void KvAttention(ConstTensor q,  // [rows, D] act
                   RowSpans spans, const KvCache& cache, int head_size,
                   Tensor out);  // [rows, D] act

  // --- Sampling -----------------------------------------------------------------------------------------------------
  // Whether Sample accepts rows of `vocab` logits.
  virtual bool can_sample(int64_t vocab) const = 0;
  // tokens[i] is drawn from row i by rows[i] (kernels/sample_row.h); -1 if a logit of the row is not finite. Ids from
  // `limit` on and those in `holes` are never drawn; at least one id must remain. Waits for the ops before it.
  void Sample(ConstTensor logits,  // [rows, vocab] fp32
              int64_t limit, absl::Span<const int32_t> holes, absl::Span<const SampleRow> rows,
              absl::Span<int32_t> tokens);  // [rows], host memory

 protected:
  // `activation_dtype`: fp32, fp16 or bf16.
  explicit Backend(DType activation_dtype) : activation_dtype_(activation_dtype) {}

 private:
  // The ops of one back end. Their arguments have been checked and are not empty: there is at least one row, id or
  // copy. Tensors go by reference, so that this call copies none of them again.
  virtual void DoEmbed(const ConstTensor& table, absl::Span<const int32_t> ids, const Tensor& out) = 0;
  virtual void DoCopyRows(const ConstTensor& from, absl::Span<const RowCopy> copies, const Tensor& to) = 0;
  virtual void DoConvert(const ConstTensor& from, const Tensor& to) = 0;
  virtual void DoGroupNorm(const ConstTensor& x, int groups, const NormWeights& norm, float epsilon,
                           const ConstTensor& gate, const Tensor& out) = 0;
  virtual void DoMatMul(const ConstTensor& x, const Matrix& weight, const Epilogue& epilogue, const Tensor& out) = 0;
  virtual void DoTokenShift(const ConstTensor& x, RowSpans spans, const Tensor& shift, const ConstTensor& mix,
                            const Tensor& out) = 0;
  virtual void DoDdLerp(const ConstTensor& x, RowSpans spans, const Tensor& shift, const DdLerpWeights& weights,
                        const Tensor& out) = 0;
  virtual void DoWkvForward(const ConstTensor& r, const ConstTensor& k, const ConstTensor& v, const ConstTensor& w,
                            const ConstTensor& bonus, RowSpans spans, const Tensor& state, const WkvOptions& options,
                            const Tensor& out) = 0;
  virtual void DoGoldAppend(absl::Span<const int32_t> ids, const ConstTensor& c, RowSpans spans,
                            const GoldCache& cache) = 0;
  virtual void DoGoldKeyTableRows(absl::Span<const int32_t> ids, const ConstTensor& embedding, const NormWeights& ln0,
                                  const Matrix& key_x0, const Tensor& table) = 0;
  virtual void DoGoldMixTableRows(absl::Span<const int32_t> ids, const ConstTensor& embedding, const NormWeights& ln0,
                                  const ConstTensor& mix_lora, const Matrix& mix_down, const Tensor& table) = 0;
  virtual void DoGoldAttention(const ConstTensor& q, RowSpans spans, const GoldSharedWeights& shared,
                               const GoldKvWeights& weights, const GoldCache& cache, int head_size,
                               const Tensor& out) = 0;
  virtual void DoGoldMakeKeysValues(RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                                    const GoldCache& cache, int head_size, const KvCache& kv) = 0;
  virtual void DoGoldMakeSharedRows(RowSpans spans, const GoldSharedWeights& shared,
                                    absl::Span<const GoldKvWeights> layers, const GoldCache& cache, int head_size,
                                    const GoldSharedRows& rows) = 0;
  virtual void DoGoldSharedAttention(const ConstTensor& q, RowSpans spans, const GoldSharedWeights& shared,
                                     absl::Span<const GoldKvWeights> layers, int layer, const GoldSharedRows& rows,
                                     int head_size, const Tensor& out) = 0;
  virtual void DoRope(const Tensor& x, RowSpans spans, int head_size, double base) = 0;
  virtual void DoKvAppend(const ConstTensor& k, const ConstTensor& v, RowSpans spans, const KvCache& cache) = 0;
  virtual void DoKvAttention(const ConstTensor& q, RowSpans spans, const KvCache& cache, int head_size,
                             const Tensor& out) = 0;
  virtual void DoSample(const ConstTensor& logits, int64_t limit, absl::Span<const int32_t> holes,
                        absl::Span<const SampleRow> rows, absl::Span<int32_t> tokens) = 0;

  const DType activation_dtype_;
};

// `threads`: 0 takes one per core.
std::unique_ptr<Backend> MakeCpuBackend(int threads);

}  // namespace goldfinch

#endif  // GOLDFINCH_KERNELS_BACKEND_H_
