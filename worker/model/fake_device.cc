#include "worker/model/fake_device.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "worker/model/weight_loader.h"

namespace goldfinch {

// The device gives out addresses at which nothing can be read or written. What they stand for is at the same offset
// from `memory_` as they are from `addresses_`.
class FakeDevice::Memory {
 public:
  Memory() : addresses_(Map(PROT_NONE)), memory_(Map(PROT_READ | PROT_WRITE)) {
    const std::lock_guard<std::mutex> lock(AllMutex());
    All().push_back(this);
  }
  ~Memory() {
    {
      const std::lock_guard<std::mutex> lock(AllMutex());
      std::erase(All(), this);
    }
    munmap(addresses_, kBytes);
    munmap(memory_, kBytes);
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  char* Take(int64_t bytes) {
    const int64_t size = Rounded(bytes);
    const std::lock_guard<std::mutex> lock(mutex_);  // peers release memory in their own threads
    allocated_ += bytes;
    std::vector<char*>& free = free_[size];
    if (!free.empty()) {
      char* address = free.back();
      free.pop_back();
      return address;
    }
    GF_CHECK_LE(used_ + size, kBytes);
    char* address = addresses_ + used_;
    used_ += size;
    return address;
  }
  void Release(char* address, int64_t bytes) {
    madvise(Behind(address, bytes), Rounded(bytes), MADV_DONTNEED);  // the next owner finds zeros
    const std::lock_guard<std::mutex> lock(mutex_);
    allocated_ -= bytes;
    free_[Rounded(bytes)].push_back(address);
  }

  int64_t allocated() const { return allocated_; }

  char* Behind(const void* address, int64_t bytes) const {
    const int64_t offset = static_cast<const char*>(address) - addresses_;
    GF_CHECK(offset >= 0 && offset + bytes <= used_) << "a tensor outside the device's memory";
    return memory_ + offset;
  }
  // What is behind an address of any fake device; others are the host's.
  static char* BehindAny(const void* address, int64_t bytes) {
    const std::lock_guard<std::mutex> lock(AllMutex());
    for (const Memory* memory : All()) {
      if (memory->Touches(address, bytes)) return memory->Behind(address, bytes);
    }
    return static_cast<char*>(const_cast<void*>(address));
  }
  bool Touches(const void* data, int64_t bytes) const {
    const char* begin = static_cast<const char*>(data);
    return begin < addresses_ + kBytes && begin + bytes > addresses_;
  }

 private:
  static constexpr int64_t kBytes = int64_t{1} << 34;
  static constexpr int64_t kPage = 4096;

  static std::mutex& AllMutex() {
    static auto& mutex = *new std::mutex;
    return mutex;
  }
  static std::vector<Memory*>& All() {
    static auto& all = *new std::vector<Memory*>;
    return all;
  }
  static int64_t Rounded(int64_t bytes) { return (std::max<int64_t>(bytes, 1) + kPage - 1) / kPage * kPage; }
  static char* Map(int access) {
    void* base = mmap(nullptr, kBytes, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    GF_CHECK(base != MAP_FAILED) << "no addresses for a fake device";
    return static_cast<char*>(base);
  }

  char* const addresses_;
  char* const memory_;
  std::mutex mutex_;
  std::atomic<int64_t> used_ = 0;
  std::atomic<int64_t> allocated_ = 0;
  std::map<int64_t, std::vector<char*>> free_;  // by size
};

class FakeDevice::Progress : public std::enable_shared_from_this<Progress> {
 public:
  std::shared_ptr<const Mark> Record() {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++recorded_;
    if (!held_) reached_ = recorded_;
    return std::make_shared<HeldMark>(shared_from_this(), recorded_);
  }
  void Hold(bool held) {
    const std::lock_guard<std::mutex> lock(mutex_);
    held_ = held;
    if (!held) reached_ = recorded_;
    changed_.notify_all();
  }
  void Fail(absl::Status fault) {
    const std::lock_guard<std::mutex> lock(mutex_);
    fault_ = std::move(fault);
    changed_.notify_all();
  }
  absl::Status fault() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return fault_;
  }

 private:
  class HeldMark : public Mark {
   public:
    HeldMark(std::shared_ptr<Progress> progress, int64_t number) : progress_(std::move(progress)), number_(number) {}
    bool reached() const override {
      const std::lock_guard<std::mutex> lock(progress_->mutex_);
      return IsOver();
    }
    void Wait() const override {
      std::unique_lock<std::mutex> lock(progress_->mutex_);
      progress_->changed_.wait(lock, [this] { return IsOver(); });
    }

   private:
    // As on a real device, whose marks are all reached once it has failed.
    bool IsOver() const { return number_ <= progress_->reached_ || !progress_->fault_.ok(); }

    const std::shared_ptr<Progress> progress_;
    const int64_t number_;
  };

  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false;
  int64_t recorded_ = 0;
  int64_t reached_ = 0;
  absl::Status fault_;
};

// One op: maps its tensors to memory that the inner back end can read, widens activations to fp32, and rounds those
// that the op wrote at the end.
class FakeDevice::Op {
 public:
  explicit Op(FakeDevice& device) : device_(device) {}
  ~Op() {
    for (const Written& tensor : written_) device_.inner_.Convert(tensor.wide, tensor.narrow);
  }
  Op(const Op&) = delete;
  Op& operator=(const Op&) = delete;

  // Tensors of any type, passed on as they are.
  template <class AnyTensor>
  AnyTensor Raw(AnyTensor tensor) {
    if (tensor) tensor.data = device_.memory_->Behind(tensor.data, tensor.bytes());
    return tensor;
  }
  Matrix Raw(const Matrix& matrix) { return {Raw(matrix.data), matrix.layout, Raw(matrix.scales)}; }
  NormWeights Raw(const NormWeights& norm) { return {Raw(norm.weight), Raw(norm.bias)}; }
  DdLerpWeights Raw(const DdLerpWeights& w) { return {Raw(w.mix_x), Raw(w.down), Raw(w.up), Raw(w.mix)}; }
  GoldCache Raw(const GoldCache& cache) { return {Raw(cache.ids), Raw(cache.c)}; }
  KvCache Raw(const KvCache& cache) { return {Raw(cache.keys), Raw(cache.values)}; }
  GoldKvWeights Raw(GoldKvWeights w) {
    for (ConstTensor* t : {&w.mix_lora, &w.mix_key, &w.mix_value, &w.mix_up, &w.mix_table}) *t = Raw(*t);
    for (Matrix* m : {&w.mix_down, &w.key_down, &w.key_up, &w.value_down, &w.value_up}) *m = Raw(*m);
    for (NormWeights* norm : {&w.ln_key, &w.ln_value}) *norm = Raw(*norm);
    return w;
  }
  std::vector<GoldKvWeights> Raw(absl::Span<const GoldKvWeights> layers) {
    std::vector<GoldKvWeights> raw;
    for (const GoldKvWeights& layer : layers) raw.push_back(Raw(layer));
    return raw;
  }
  GoldSharedRows Raw(GoldSharedRows rows) {
    rows.data = device_.memory_->Behind(rows.data, rows.pages * rows.page_bytes);
    return rows;
  }

  // A readable fp32 copy of a tensor that may be fp32 or activations; an fp32 tensor is not copied.
  ConstTensor Wide(ConstTensor tensor) {
    tensor = Raw(tensor);
    return !tensor || tensor.dtype == DType::kF32 ? tensor : Widened(tensor);
  }
  // The same for a tensor that the op writes; what the op does not write keeps its value.
  Tensor Wide(Tensor tensor) {
    tensor = Raw(tensor);
    if (!tensor || tensor.dtype == DType::kF32) return tensor;
    const Tensor wide = Widened(tensor);
    written_.push_back({wide, tensor});
    return wide;
  }
  GoldSharedWeights Wide(const GoldSharedWeights& shared) {
    return {Raw(shared.embedding), Raw(shared.ln0), Raw(shared.key_compressed), Wide(shared.key_table)};
  }

 private:
  struct Written {
    Tensor wide;
    Tensor narrow;
  };

  Tensor Widened(ConstTensor tensor) {
    const std::vector<float> values = ToFloats(tensor);
    const auto bytes = static_cast<int64_t>(values.size() * sizeof(float));
    const Tensor wide{device_.Scratch(scratch_used_++, bytes), DType::kF32, tensor.shape};
    std::memcpy(wide.data, values.data(), bytes);
    return wide;
  }

  FakeDevice& device_;
  size_t scratch_used_ = 0;
  std::vector<Written> written_;
};

FakeDevice::FakeDevice(Backend& inner, DType activations)
    : Backend(activations),
      inner_(inner),
      memory_(std::make_shared<Memory>()),
      progress_(std::make_shared<Progress>()),
      queue_(progress_) {
  GF_CHECK(inner.kind() == DeviceKind::kCpu && inner.activation_dtype() == DType::kF32);
}

FakeDevice::FakeDevice(std::unique_ptr<Backend> inner, DType activations) : FakeDevice(*inner, activations) {
  owned_ = std::move(inner);
}

void* FakeDevice::Scratch(size_t index, int64_t bytes) {
  if (index >= scratch_.size()) scratch_.resize(index + 1);
  Buffer& buffer = scratch_[index];
  if (bytes > buffer.bytes) {
    absl::StatusOr<std::shared_ptr<void>> memory = inner_.Allocate(bytes, "activations of a fake device");
    GF_CHECK(memory.ok()) << memory.status();
    buffer = {*std::move(memory), bytes};
  }
  return buffer.memory.get();
}

absl::StatusOr<std::shared_ptr<void>> FakeDevice::DoAllocate(int64_t bytes, std::string_view purpose) {
  if (allocations_left_ == 0 || bytes > bytes_max_ - allocated_bytes()) {
    return absl::ResourceExhaustedError(absl::StrCat("no memory for ", std::string(purpose), " of ", bytes, " bytes"));
  }
  --allocations_left_;
  return std::shared_ptr<void>(memory_->Take(bytes), [memory = memory_, bytes](void* released) {
    memory->Release(static_cast<char*>(released), bytes);
  });
}

int64_t FakeDevice::allocated_bytes() const { return memory_->allocated(); }

void FakeDevice::DoCopyFromHost(const void* host, const Tensor& to) {
  GF_CHECK(!memory_->Touches(host, to.bytes())) << "not the host's memory";
  Op op(*this);
  inner_.CopyFromHost(host, op.Raw(to));
}

void FakeDevice::DoCopyToHost(const ConstTensor& from, void* host) {
  GF_CHECK(!memory_->Touches(host, from.bytes())) << "not the host's memory";
  Op op(*this);
  inner_.CopyToHost(op.Raw(from), host);
}

void FakeDevice::DoZero(const Tensor& tensor) {
  Op op(*this);
  inner_.Zero(op.Raw(tensor));
}

void FakeDevice::DoCopy(const ConstTensor& from, const Tensor& to) {
  Op op(*this);
  inner_.Copy(op.Raw(from), op.Raw(to));
}

void FakeDevice::HoldMarks(bool held) { progress_->Hold(held); }
void FakeDevice::Fail(absl::Status fault) { progress_->Fail(std::move(fault)); }
absl::Status FakeDevice::status() const { return progress_->fault(); }

std::shared_ptr<const Mark> FakeDevice::FakeQueue::Record() { return progress_->Record(); }
void FakeDevice::FakeQueue::Copy(const void* from, void* to, int64_t bytes) {
  HostQueue::Copy(Memory::BehindAny(from, bytes), Memory::BehindAny(to, bytes), bytes);
}

void FakeDevice::DoEmbed(const ConstTensor& table, absl::Span<const int32_t> ids, const Tensor& out) {
  Op op(*this);
  inner_.Embed(op.Raw(table), ids, op.Raw(out));
}

void FakeDevice::DoCopyRows(const ConstTensor& from, absl::Span<const RowCopy> copies, const Tensor& to) {
  Op op(*this);
  inner_.CopyRows(op.Wide(from), copies, op.Wide(to));
}

void FakeDevice::DoConvert(const ConstTensor& from, const Tensor& to) {
  Op op(*this);
  inner_.Convert(op.Wide(from), op.Raw(to));
}

void FakeDevice::DoGroupNorm(const ConstTensor& x, int groups, const NormWeights& norm, float epsilon,
                             const ConstTensor& gate, const Tensor& out) {
  Op op(*this);
  inner_.GroupNorm(op.Wide(x), groups, op.Raw(norm), epsilon, op.Wide(gate), op.Wide(out));
}

void FakeDevice::DoMatMul(const ConstTensor& x, const Matrix& weight, const Epilogue& epilogue, const Tensor& out) {
  Op op(*this);
  Epilogue wide = epilogue;
  wide.bias = op.Raw(epilogue.bias);
  wide.multiply = op.Wide(epilogue.multiply);
  inner_.MatMul(op.Wide(x), op.Raw(weight), wide, op.Wide(out));
}

void FakeDevice::DoTokenShift(const ConstTensor& x, RowSpans spans, const Tensor& shift, const ConstTensor& mix,
                              const Tensor& out) {
  Op op(*this);
  inner_.TokenShift(op.Wide(x), spans, op.Raw(shift), op.Raw(mix), op.Wide(out));
}

void FakeDevice::DoDdLerp(const ConstTensor& x, RowSpans spans, const Tensor& shift, const DdLerpWeights& weights,
                          const Tensor& out) {
  Op op(*this);
  inner_.DdLerp(op.Wide(x), spans, op.Raw(shift), op.Raw(weights), op.Wide(out));
}

void FakeDevice::DoWkvForward(const ConstTensor& r, const ConstTensor& k, const ConstTensor& v, const ConstTensor& w,
                              const ConstTensor& bonus, RowSpans spans, const Tensor& state, const WkvOptions& options,
                              const Tensor& out) {
  Op op(*this);
  inner_.WkvForward(op.Wide(r), op.Wide(k), op.Wide(v), op.Wide(w), op.Raw(bonus), spans, op.Raw(state), options,
                    op.Wide(out));
}

void FakeDevice::DoGoldAppend(absl::Span<const int32_t> ids, const ConstTensor& c, RowSpans spans,
                              const GoldCache& cache) {
  Op op(*this);
  inner_.GoldAppend(ids, c.dtype == cache.c.dtype ? op.Raw(c) : op.Wide(c), spans, op.Raw(cache));
}

void FakeDevice::DoGoldKeyTableRows(absl::Span<const int32_t> ids, const ConstTensor& embedding, const NormWeights& ln0,
                                    const Matrix& key_x0, const Tensor& table) {
  Op op(*this);
  inner_.GoldKeyTableRows(ids, op.Raw(embedding), op.Raw(ln0), op.Raw(key_x0), op.Wide(table));
}

void FakeDevice::DoGoldMixTableRows(absl::Span<const int32_t> ids, const ConstTensor& embedding, const NormWeights& ln0,
                                    const ConstTensor& mix_lora, const Matrix& mix_down, const Tensor& table) {
  Op op(*this);
  inner_.GoldMixTableRows(ids, op.Raw(embedding), op.Raw(ln0), op.Raw(mix_lora), op.Raw(mix_down), op.Raw(table));
}

void FakeDevice::DoGoldAttention(const ConstTensor& q, RowSpans spans, const GoldSharedWeights& shared,
                                 const GoldKvWeights& weights, const GoldCache& cache, int head_size,
                                 const Tensor& out) {
  Op op(*this);
  inner_.GoldAttention(op.Wide(q), spans, op.Wide(shared), op.Raw(weights), op.Raw(cache), head_size, op.Wide(out));
}

void FakeDevice::DoGoldMakeKeysValues(RowSpans spans, const GoldSharedWeights& shared, const GoldKvWeights& weights,
                                      const GoldCache& cache, int head_size, const KvCache& kv) {
  Op op(*this);
  inner_.GoldMakeKeysValues(spans, op.Wide(shared), op.Raw(weights), op.Raw(cache), head_size, op.Raw(kv));
}

int64_t FakeDevice::GoldSharedPageBytes(int64_t width, absl::Span<const GoldKvWeights> layers, int head_size,
                                        int64_t page_tokens) const {
  return inner_.GoldSharedPageBytes(width, layers, head_size, page_tokens);
}

// The rows that are kept are those of the inner back end: fp32, made from rounded inputs.
void FakeDevice::DoGoldMakeSharedRows(RowSpans spans, const GoldSharedWeights& shared,
                                      absl::Span<const GoldKvWeights> layers, const GoldCache& cache, int head_size,
                                      const GoldSharedRows& rows) {
  Op op(*this);
  inner_.GoldMakeSharedRows(spans, op.Wide(shared), op.Raw(layers), op.Raw(cache), head_size, op.Raw(rows));
}

void FakeDevice::DoGoldSharedAttention(const ConstTensor& q, RowSpans spans, const GoldSharedWeights& shared,
                                       absl::Span<const GoldKvWeights> layers, int layer, const GoldSharedRows& rows,
                                       int head_size, const Tensor& out) {
  Op op(*this);
  inner_.GoldSharedAttention(op.Wide(q), spans, op.Wide(shared), op.Raw(layers), layer, op.Raw(rows), head_size,
                             op.Wide(out));
}

void FakeDevice::DoRope(const Tensor& x, RowSpans spans, int head_size, double base) {
  Op op(*this);
  inner_.Rope(op.Wide(x), spans, head_size, base);
}

void FakeDevice::DoKvAppend(const ConstTensor& k, const ConstTensor& v, RowSpans spans, const KvCache& cache) {
  Op op(*this);
  inner_.KvAppend(op.Wide(k), op.Wide(v), spans, op.Raw(cache));
}

void FakeDevice::DoKvAttention(const ConstTensor& q, RowSpans spans, const KvCache& cache, int head_size,
                               const Tensor& out) {
  Op op(*this);
  inner_.KvAttention(op.Wide(q), spans, op.Raw(cache), head_size, op.Wide(out));
}

void FakeDevice::DoSample(const ConstTensor& logits, int64_t limit, absl::Span<const int32_t> holes,
                          absl::Span<const SampleRow> rows, absl::Span<int32_t> tokens) {
  Op op(*this);
  inner_.Sample(op.Raw(logits), limit, holes, rows, tokens);
}

}  // namespace goldfinch
