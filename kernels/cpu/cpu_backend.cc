#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "kernels/backend.h"
#include "kernels/cpu/ops.h"

namespace goldfinch {
namespace {

void CheckShape(const ConstTensor& tensor, const Shape& shape, const char* what) {
  GF_CHECK(tensor.shape == shape) << what << " is " << tensor.shape.ToString() << ", expected " << shape.ToString();
}

void CheckFloats(const ConstTensor& tensor, const Shape& shape, const char* what) {
  CheckShape(tensor, shape, what);
  GF_CHECK(tensor.dtype == DType::kF32) << what << " is " << Name(tensor.dtype) << ", expected f32";
}

void CheckNorm(const NormWeights& norm, int64_t width) {
  CheckFloats(norm.weight, {width}, "norm weight");
  CheckFloats(norm.bias, {width}, "norm bias");
}

// Spans are in order and cover every row.
void CheckSpans(RowSpans spans, int64_t rows) {
  int64_t row = 0;
  for (const RowSpan& span : spans) {
    GF_CHECK_EQ(span.row_begin, row);
    GF_CHECK_GE(span.row_count, 1);
    GF_CHECK_GE(span.slot, 0);
    GF_CHECK_GE(span.position, 0);
    row += span.row_count;
  }
  GF_CHECK_EQ(row, rows);
}

void CheckSlots(RowSpans spans, const Tensor& state) {
  for (const RowSpan& span : spans) GF_CHECK_LT(span.slot, state.dim(0));
}

void CheckHeads(int64_t width, int head_size) {
  GF_CHECK(head_size > 0 && head_size <= 1024) << "head size " << head_size;
  GF_CHECK_EQ(head_size % 16, 0);
  GF_CHECK_EQ(width % head_size, 0);
}

void CheckPages(RowSpans spans) {
  for (const RowSpan& span : spans) GF_CHECK(span.pages != nullptr);
}

// memcpy wants real pointers even for nothing.
void CopyBytes(const void* from, void* to, int64_t bytes) {
  if (bytes > 0) std::memcpy(to, from, bytes);
}

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(int threads) : context_(threads) {}

  std::string Describe() const override {
    return absl::StrCat("cpu, ", context_.pool.threads(), " threads, ", cpu::TargetName());
  }

  int threads() const override { return context_.pool.threads(); }

  absl::StatusOr<std::shared_ptr<void>> Allocate(int64_t bytes, std::string_view purpose) override {
    GF_CHECK_GE(bytes, 0);
    const size_t size = std::max<int64_t>(bytes, 1);
    void* memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
      return absl::ResourceExhaustedError(absl::StrCat("cannot allocate ", bytes, " bytes for ", std::string(purpose)));
    }
    return std::shared_ptr<void>(memory, [size](void* p) { munmap(p, size); });
  }

  bool reads_host_memory() const override { return true; }
  void CopyFromHost(const void* host, Tensor to) override { CopyBytes(host, to.data, to.bytes()); }
  void CopyToHost(ConstTensor from, void* host) override { CopyBytes(from.data, host, from.bytes()); }
  void Zero(Tensor tensor) override {
    if (tensor.bytes() > 0) std::memset(tensor.data, 0, tensor.bytes());
  }
  void Copy(ConstTensor from, Tensor to) override {
    GF_CHECK(from.dtype == to.dtype);
    CheckShape(from, to.shape, "copy");
    CopyBytes(from.data, to.data, from.bytes());
  }
  absl::Status Synchronize() override { return absl::OkStatus(); }

  void Embed(ConstTensor table, absl::Span<const int32_t> ids, Tensor out) override {
    CheckFloats(out, {static_cast<int64_t>(ids.size()), table.dim(1)}, "embedding output");
    for (int32_t id : ids) GF_CHECK(id >= 0 && id < table.dim(0)) << "id " << id;
    cpu::Embed(context_, table, ids, out);
  }

  void CopyRows(ConstTensor from, absl::Span<const RowCopy> copies, Tensor to) override {
    GF_CHECK_EQ(from.dim(1), to.dim(1));
    const int64_t width = from.dim(1);
    for (const RowCopy& copy : copies) {
      GF_CHECK(copy.from >= 0 && copy.from < from.dim(0));
      GF_CHECK(copy.to >= 0 && copy.to < to.dim(0));
      std::memmove(to.f32() + copy.to * width, from.f32() + copy.from * width, width * sizeof(float));
    }
  }

  void GroupNorm(ConstTensor x, int groups, NormWeights norm, float epsilon, ConstTensor gate, Tensor out) override {
    CheckNorm(norm, x.dim(1));
    CheckFloats(out, x.shape, "norm output");
    if (gate) CheckFloats(gate, x.shape, "norm gate");
    GF_CHECK_EQ(x.dim(1) % groups, 0);
    cpu::GroupNorm(context_, x, groups, norm, epsilon, gate, out);
  }

  void MatMul(ConstTensor x, Matrix weight, const Epilogue& epilogue, Tensor out) override {
    CheckFloats(x, {x.dim(0), weight.in()}, "product input");
    CheckFloats(out, {x.dim(0), weight.out()}, "product output");
    if (epilogue.bias) CheckFloats(epilogue.bias, {weight.out()}, "product bias");
    if (epilogue.multiply) CheckFloats(epilogue.multiply, out.shape, "product multiplier");
    cpu::MatMul(context_, x, weight, epilogue, out);
  }

  void TokenShift(ConstTensor x, RowSpans spans, Tensor shift, ConstTensor mix, Tensor out) override {
    CheckShiftOp(x, spans, shift, mix, out);
    cpu::TokenShift(context_, x, spans, shift, mix, out);
  }

  void DdLerp(ConstTensor x, RowSpans spans, Tensor shift, const DdLerpWeights& weights, Tensor out) override {
    CheckShiftOp(x, spans, shift, weights.mix, out);
    const int64_t width = x.dim(1), targets = weights.mix.dim(0), rank = weights.up.dim(1);
    CheckFloats(weights.mix_x, {width}, "mix_x");
    CheckShape(weights.up, {targets, rank, width}, "LoRA up");
    CheckShape(weights.down.data, {width, targets * rank}, "LoRA down");
    cpu::DdLerp(context_, x, spans, shift, weights, out);
  }

  void WkvForward(ConstTensor r, ConstTensor k, ConstTensor v, ConstTensor w, ConstTensor bonus, RowSpans spans,
                  Tensor state, const WkvOptions& options, Tensor out) override {
    const int64_t rows = r.dim(0), width = r.dim(1), heads = state.dim(1), head_size = state.dim(2);
    CheckSpans(spans, rows);
    CheckSlots(spans, state);
    CheckHeads(width, static_cast<int>(head_size));
    GF_CHECK_EQ(heads * head_size, width);
    GF_CHECK_EQ(state.dim(3), head_size);
    CheckFloats(k, r.shape, "k");
    CheckFloats(v, r.shape, "v");
    CheckFloats(w, {w.dim(0) == 1 ? 1 : rows, width}, "w");
    if (bonus) CheckFloats(bonus, {heads, head_size}, "bonus");
    CheckFloats(out, r.shape, "wkv output");
    cpu::WkvForward(context_, r, k, v, w, bonus, spans, state, options, out);
  }

  void Convert(ConstTensor from, Tensor to) override {
    CheckFloats(from, to.shape, "conversion input");
    cpu::Convert(context_, from, to);
  }

  void GoldAppend(absl::Span<const int32_t> ids, ConstTensor c, RowSpans spans, const GoldCache& cache) override {
    CheckSpans(spans, c.dim(0));
    CheckPages(spans);
    GF_CHECK_EQ(static_cast<int64_t>(ids.size()), c.dim(0));
    CheckShape(cache.c, {cache.ids.dim(0), cache.page_tokens(), c.dim(1)}, "compressed cache");
    cpu::GoldAppend(context_, ids, c, spans, cache);
  }

  void GoldKeyTableRows(absl::Span<const int32_t> ids, ConstTensor embedding, NormWeights ln0, Matrix key_x0,
                        Tensor table) override {
    const int64_t width = embedding.dim(1);
    CheckNorm(ln0, width);
    CheckShape(key_x0.data, {width, width}, "key projection of x0");
    CheckFloats(table, {embedding.dim(0), width}, "key table");
    for (int32_t id : ids) GF_CHECK(id >= 0 && id < table.dim(0)) << "id " << id;
    cpu::GoldKeyTableRows(context_, ids, embedding, ln0, key_x0, table);
  }

  void GoldAttention(ConstTensor q, RowSpans spans, const GoldShared& shared, const GoldKvWeights& weights,
                     const GoldCache& cache, int head_size, Tensor out) override {
    const int64_t width = q.dim(1), rank = weights.mix_up.dim(1);
    CheckSpans(spans, q.dim(0));
    CheckPages(spans);
    CheckHeads(width, head_size);
    CheckFloats(out, q.shape, "attention output");
    CheckFloats(shared.key_table, {shared.embedding.dim(0), width}, "key table");
    CheckShape(shared.key_compressed.data, {width, cache.c.dim(2)}, "key projection of c");
    for (ConstTensor mix : {weights.mix_lora, weights.mix_key, weights.mix_value}) CheckFloats(mix, {width}, "mix");
    CheckShape(weights.mix_up, {2, rank, width}, "mix LoRA up");
    CheckShape(weights.mix_down.data, {width, 2 * rank}, "mix LoRA down");
    CheckLora(weights.key_down, weights.key_up, width);
    CheckLora(weights.value_down, weights.value_up, width);
    CheckNorm(weights.ln_key, width);
    CheckNorm(weights.ln_value, width);
    cpu::GoldAttention(context_, q, spans, shared, weights, cache, head_size, out);
  }

  void Rope(Tensor x, RowSpans spans, int head_size, double base) override {
    CheckSpans(spans, x.dim(0));
    CheckHeads(x.dim(1), head_size);
    cpu::Rope(context_, x, spans, head_size, base);
  }

  void KvAppend(ConstTensor k, ConstTensor v, RowSpans spans, const KvCache& cache) override {
    CheckSpans(spans, k.dim(0));
    CheckPages(spans);
    CheckFloats(v, k.shape, "v");
    GF_CHECK_EQ(cache.keys.dim(2), k.dim(1));
    CheckShape(cache.values, cache.keys.shape, "value cache");
    cpu::KvAppend(context_, k, v, spans, cache);
  }

  void KvAttention(ConstTensor q, RowSpans spans, const KvCache& cache, int head_size, Tensor out) override {
    CheckSpans(spans, q.dim(0));
    CheckPages(spans);
    CheckHeads(q.dim(1), head_size);
    CheckFloats(out, q.shape, "attention output");
    cpu::KvAttention(context_, q, spans, cache, head_size, out);
  }

 private:
  static void CheckShiftOp(const ConstTensor& x, RowSpans spans, const Tensor& shift, const ConstTensor& mix,
                           const Tensor& out) {
    CheckSpans(spans, x.dim(0));
    CheckSlots(spans, shift);
    CheckFloats(shift, {shift.dim(0), x.dim(1)}, "shift state");
    CheckFloats(mix, {mix.dim(0), x.dim(1)}, "mix");
    CheckFloats(out, {mix.dim(0), x.dim(0), x.dim(1)}, "shifted rows");
  }

  static void CheckLora(const Matrix& down, const Matrix& up, int64_t width) {
    CheckShape(down.data, {width, down.out()}, "LoRA down");
    CheckShape(up.data, {down.out(), width}, "LoRA up");
  }

  cpu::Context context_;
};

}  // namespace

std::unique_ptr<Backend> MakeCpuBackend(int threads) {
  if (threads <= 0) threads = std::max(1u, std::thread::hardware_concurrency());
  return std::make_unique<CpuBackend>(threads);
}

}  // namespace goldfinch
