#include "kernels/cuda/context.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace goldfinch::cuda {
namespace {

constexpr size_t kAlignment = 256;
constexpr size_t kScratchBytesMin = size_t{1} << 20;
// Each has a graph of some hundred launches. They differ in batch size, and in the length of the context where launches
// depend on it.
constexpr size_t kKnownSubmissionsMax = 64;
// A submission with more launches than such a log holds, some ten thousand, takes the device longer than the host, so a
// graph would not help.
constexpr size_t kLogBytesMax = size_t{2} << 20;

size_t RoundUp(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

bool SameSpan(const RowSpan& a, const RowSpan& b) {
  return a.slot == b.slot && a.row_begin == b.row_begin && a.row_count == b.row_count && a.position == b.position &&
         a.pages == b.pages && a.kept_pages == b.kept_pages;
}

// During the lifetime of one, launches of this thread go through the tap.
class Tapped {
 public:
  explicit Tapped(LaunchTap* tap) : before_(std::exchange(launch_tap, tap)) {}
  ~Tapped() { launch_tap = before_; }
  Tapped(const Tapped&) = delete;
  Tapped& operator=(const Tapped&) = delete;

 private:
  LaunchTap* const before_;
};

}  // namespace

Context::Context(std::unique_ptr<Runtime> runtime, std::unique_ptr<GemmRunner> gemm, DType activation_dtype)
    : runtime_(std::move(runtime)), gemm_(std::move(gemm)), activation_dtype_(activation_dtype), arena_(*runtime_) {}

void Context::RunGemm(const Gemm& gemm) {
  if (launch_tap != nullptr && !launch_tap->Pass(Work::kProduct, gemm)) return;
  const Tapped none(nullptr);  // kernels that are used instead of the library belong to the product
  gemm_->Run(gemm);
}

void Context::CopyOnDevice(const void* from, void* to, int64_t bytes) {
  if (launch_tap != nullptr && !launch_tap->Pass(Work::kCopy, from, to, bytes)) return;
  runtime_->CopyOnDevice(from, to, bytes);
}

void Context::Zero(void* device, int64_t bytes) {
  if (launch_tap != nullptr && !launch_tap->Pass(Work::kZero, device, bytes)) return;
  runtime_->Zero(device, bytes);
}

void* Context::Scratch(int64_t bytes) {
  GF_CHECK_GE(bytes, 0);
  const size_t size = RoundUp(std::max<int64_t>(bytes, 1));
  if (scratch_used_ + size > scratch_bytes_) {
    // A new block replaces the old one, whose users may still be queued. The offsets of open frames stay as they are,
    // so the first part of the new block stays empty until they end.
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
  GF_CHECK(!in_submission_) << "a wait within a submission";
  absl::Status status = runtime_->Synchronize();
  if (scratch_used_ == 0) outgrown_.clear();
  return status;
}

// --- Submissions ----------------------------------------------------------------------------------------------------

void Context::Submit(bool repeats, absl::FunctionRef<void()> ops) {
  GF_CHECK(!in_submission_) << "a submission within a submission";
  in_submission_ = true;
  submissions_.fetch_add(1, std::memory_order_relaxed);
  if (scratch_used_ == 0) outgrown_.clear();  // their release waits for the device, so it is not done sooner
  again_ = false;
  uploaded_.clear();
  shared_.clear();
  shared_next_ = 0;
  shared_bytes_.clear();
  spans_uploads_.clear();
  submission_spans_.clear();
  pages_.clear();
  arena_.Begin();
  if (repeats && captures_) {
    RunRepeated(ops);
  } else {
    RunOnce(ops);
  }
  in_submission_ = false;
}

void Context::RunOnce(absl::FunctionRef<void()> ops) {
  const Tapped tapped(this);
  ops();
}

// The arrays stay where the first call put them.
void Context::RunAgain(absl::FunctionRef<void()> ops) {
  again_ = true;
  uploaded_again_ = 0;
  RunOnce(ops);
  GF_CHECK_EQ(uploaded_again_, uploaded_.size()) << "ops of a submission that differ from call to call";
}

void Context::RunRepeated(absl::FunctionRef<void()> ops) {
  const void* const scratch = scratch_.get();
  dry_ = true;
  log_.clear();
  RunOnce(ops);
  if (scratch_.get() != scratch) {  // the log has addresses of two blocks
    log_.clear();
    RunAgain(ops);
  }
  dry_ = false;
  arena_.Flush();
  if (log_.size() > kLogBytesMax) return RunAgain(ops);

  const auto known = std::find_if(known_submissions_.begin(), known_submissions_.end(),
                                  [this](const KnownSubmission& s) { return s.log == log_; });
  if (known == known_submissions_.end()) {
    if (known_submissions_.size() == kKnownSubmissionsMax) known_submissions_.pop_back();
    known_submissions_.push_front({log_, nullptr});
    return RunAgain(ops);
  }
  known_submissions_.splice(known_submissions_.begin(), known_submissions_, known);
  if (known->graph == nullptr) {
    const int64_t launches = counters_.launches;
    runtime_->BeginCapture();
    RunAgain(ops);
    known->graph = runtime_->EndCapture();
    counters_.launches = launches;
    if (known->graph == nullptr) {
      captures_ = false;
      return RunAgain(ops);
    }
    ++counters_.captures;
  }
  known->graph->Launch();
  ++counters_.graph_launches;
}

CudaCounters Context::counters() const {
  CudaCounters counters = counters_;
  counters.uploads = arena_.copies();
  return counters;
}

// --- Uploads --------------------------------------------------------------------------------------------------------

// The result of put(), or its result when the ops of the submission were called before.
template <typename Put>
const void* Context::Given(int64_t bytes, Put put) {
  if (again_) {
    GF_CHECK_LT(uploaded_again_, uploaded_.size()) << "ops of a submission that differ from call to call";
    const Uploaded& given = uploaded_[uploaded_again_++];
    GF_CHECK_EQ(given.bytes, bytes) << "ops of a submission that differ from call to call";
    return given.device;
  }
  const void* const device = put();
  uploaded_.push_back({device, bytes});
  return device;
}

const void* Context::UploadBytes(const void* host, int64_t bytes, bool shared) {
  if (!in_submission_) {
    void* const device = Scratch(bytes);
    if (bytes > 0) runtime_->CopyToDevice(host, device, bytes);
    return device;
  }
  return Given(bytes, [&] { return shared ? PutShared(host, bytes) : arena_.PutArray(host, bytes); });
}

const void* Context::PutShared(const void* host, int64_t bytes) {
  const auto same = [&](const SharedUpload& upload) {
    return upload.bytes == bytes && bytes > 0 && std::memcmp(shared_bytes_.data() + upload.begin, host, bytes) == 0;
  };
  for (size_t i = 0; i < shared_.size(); ++i) {
    const size_t at = (shared_next_ + i) % shared_.size();
    if (!same(shared_[at])) continue;
    shared_next_ = at + 1;
    return shared_[at].device;
  }
  const auto begin = static_cast<int64_t>(shared_bytes_.size());
  const char* const from = static_cast<const char*>(host);
  shared_bytes_.insert(shared_bytes_.end(), from, from + bytes);
  shared_.push_back({arena_.PutArray(host, bytes), begin, bytes});
  shared_next_ = 0;
  return shared_.back().device;
}

const DeviceSpan* Context::UploadSpans(RowSpans spans, int64_t page_tokens, int64_t kept_tokens) {
  if (!in_submission_) return PutSpans(spans, page_tokens, kept_tokens);
  const auto bytes = static_cast<int64_t>(spans.size() * sizeof(DeviceSpan));
  return static_cast<const DeviceSpan*>(Given(bytes, [&]() -> const void* {
    for (const SpansUpload& upload : spans_uploads_) {
      if (upload.page_tokens == page_tokens && upload.kept_tokens == kept_tokens && upload.count == spans.size() &&
          std::equal(spans.begin(), spans.end(), submission_spans_.begin() + static_cast<int64_t>(upload.begin),
                     SameSpan)) {
        return upload.device;
      }
    }
    const size_t begin = submission_spans_.size();
    submission_spans_.insert(submission_spans_.end(), spans.begin(), spans.end());
    const DeviceSpan* const device = PutSpans(spans, page_tokens, kept_tokens);
    spans_uploads_.push_back({device, begin, spans.size(), page_tokens, kept_tokens});
    return device;
  }));
}

const DeviceSpan* Context::PutSpans(RowSpans spans, int64_t page_tokens, int64_t kept_tokens) {
  device_spans_.clear();
  for (const RowSpan& span : spans) {
    const auto put = [&](const int32_t* table, int64_t tokens) -> const int32_t* {
      if (tokens == 0 || table == nullptr) return nullptr;
      return PutPages(table, (span.position + span.row_count + tokens - 1) / tokens);
    };
    device_spans_.push_back({span.slot, span.row_begin, span.row_count, span.position, put(span.pages, page_tokens),
                             put(span.kept_pages, kept_tokens)});
  }
  const auto bytes = static_cast<int64_t>(device_spans_.size() * sizeof(DeviceSpan));
  if (in_submission_) return static_cast<const DeviceSpan*>(arena_.PutArray(device_spans_.data(), bytes));
  return Upload(absl::MakeConstSpan(device_spans_));
}

// Page tables do not change within a submission.
const int32_t* Context::PutPages(const int32_t* pages, int64_t count) {
  const auto bytes = count * static_cast<int64_t>(sizeof(int32_t));
  if (!in_submission_) return Upload(absl::MakeConstSpan(pages, count));
  Uploaded& known = pages_[pages];
  if (known.device == nullptr || known.bytes < bytes) known = {arena_.PutTable(pages, bytes), bytes};
  return static_cast<const int32_t*>(known.device);
}

}  // namespace goldfinch::cuda
