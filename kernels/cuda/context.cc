#include "kernels/cuda/context.h"

#include <algorithm>
#include <utility>

namespace goldfinch::cuda {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kScratchBytesMin = size_t{1} << 20;
constexpr size_t kMirrorsMax = 4096;  // page tables: more than sequences that run at once

size_t RoundUp(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

Context::Context(std::unique_ptr<Runtime> runtime, std::unique_ptr<GemmRunner> gemm, DType activation_dtype)
    : runtime_(std::move(runtime)), gemm_(std::move(gemm)), activation_dtype_(activation_dtype) {}

void* Context::Scratch(int64_t bytes) {
  GF_CHECK_GE(bytes, 0);
  const size_t size = RoundUp(std::max<int64_t>(bytes, 1));
  if (scratch_used_ + size > scratch_bytes_) {
    // A new block takes the place of the old one, whose users may still be queued. Offsets of the frames under way stay
    // as they are, so that the new block's first part is left empty until they end.
    size_t grown = std::max({kScratchBytesMin, 2 * scratch_bytes_, scratch_used_ + size});
    auto memory = runtime_->Allocate(static_cast<int64_t>(grown), "scratch of kernels");
    if (!memory.ok()) {
      grown = scratch_used_ + size;
      memory = runtime_->Allocate(static_cast<int64_t>(grown), "scratch of kernels");
    }
    GF_CHECK(memory.ok()) << memory.status().ToString();
    if (scratch_ != nullptr) outgrown_.push_back(std::move(scratch_));
    scratch_ = *std::move(memory);
    scratch_bytes_ = grown;
  }
  void* const taken = static_cast<char*>(scratch_.get()) + scratch_used_;
  scratch_used_ += size;
  return taken;
}

absl::Status Context::Synchronize() {
  absl::Status status = runtime_->Synchronize();
  if (scratch_used_ == 0) outgrown_.clear();
  return status;
}

const void* Context::UploadBytes(const void* host, int64_t bytes) {
  void* const device = Scratch(bytes);
  if (bytes > 0) runtime_->CopyToDevice(host, device, bytes);
  return device;
}

const DeviceSpan* Context::UploadSpans(RowSpans spans, int64_t page_tokens, int64_t kept_tokens) {
  spans_.clear();
  for (const RowSpan& span : spans) {
    const auto mirror = [&](const int32_t* table, int64_t tokens) -> const int32_t* {
      if (tokens == 0 || table == nullptr) return nullptr;
      return MirrorPages(table, (span.position + span.row_count + tokens - 1) / tokens);
    };
    spans_.push_back({span.slot, span.row_begin, span.row_count, span.position, mirror(span.pages, page_tokens),
                      mirror(span.kept, kept_tokens)});
  }
  return Upload(absl::MakeConstSpan(spans_));
}

const int32_t* Context::MirrorPages(const int32_t* pages, int64_t count) {
  if (mirrors_.size() >= kMirrorsMax && mirrors_.find(pages) == mirrors_.end()) {
    for (auto& [host, mirror] : mirrors_) outgrown_.push_back(std::move(mirror.device));
    mirrors_.clear();
  }
  Mirror& mirror = mirrors_[pages];
  if (count > mirror.capacity) {
    const int64_t capacity = std::max<int64_t>({64, 2 * mirror.capacity, count});
    auto memory = runtime_->Allocate(capacity * static_cast<int64_t>(sizeof(int32_t)), "a page table");
    GF_CHECK(memory.ok()) << memory.status().ToString();
    if (mirror.device != nullptr) outgrown_.push_back(std::move(mirror.device));
    mirror.device = *std::move(memory);
    mirror.capacity = capacity;
    mirror.host.clear();
  }
  // Only from the first page that differs on.
  const auto known = std::min<int64_t>(count, static_cast<int64_t>(mirror.host.size()));
  const int64_t same = std::mismatch(pages, pages + known, mirror.host.begin()).first - pages;
  auto* const device = static_cast<int32_t*>(mirror.device.get());
  if (same < count) {
    runtime_->CopyToDevice(pages + same, device + same, (count - same) * static_cast<int64_t>(sizeof(int32_t)));
    mirror.host.resize(same);
    mirror.host.insert(mirror.host.end(), pages + same, pages + count);
  }
  return device;
}

}  // namespace goldfinch::cuda
