#include "clients/cli/local/local_context.h"

#include <algorithm>
#include <cstring>
#include <string_view>
#include <tuple>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/safe_text.h"
#include "base/status.h"
#include "clients/cli/local/exchange_file.h"
#include "clients/cli/local/tuned_state.h"
#include "coordinator/store/exchange.h"
#include "worker/checkpoint/fingerprint.h"

namespace goldfinch {
namespace {

// Puts what is in the file into memory of the kind that Stage::Restore reads.
class SegmentSink : public ExchangeSink {
 public:
  explicit SegmentSink(Engine& engine) : engine_(engine) {}

  absl::Status OnHeader(const ExchangeHeader& header) override {
    GF_RETURN_IF_ERROR(CheckSameModel(header.segment.model, ContextModelOf(engine_)));
    const int64_t tokens = header.segment.end, limit = engine_.options().max_model_len;
    if (tokens > limit) {
      return absl::InvalidArgumentError(absl::StrCat("has ", tokens, " tokens, max_model_len is ", limit));
    }
    segment.end = tokens;
    segment.gold_position = header.segment.gold_position;
    for (const StatePart& part : engine_.stage().saved_parts()) {
      if (part.kind == StatePartKind::kLogits) continue;
      GF_ASSIGN_OR_RETURN(char* const data, AddPart(part, part.per_token() ? tokens : 1));
      if (part.kind == StatePartKind::kIds) {
        ids_ = data;
        ids_dtype_ = part.dtype;
        continue;
      }
      const int section = header.layout.Find(header.segment.model, part.layer, part.kind);
      GF_CHECK_GE(section, 0);  // as the models are the same
      cursors_.resize(std::max(cursors_.size(), static_cast<size_t>(section) + 1));
      cursors_[section] = data;
    }
    if (!header.segment.has_logits) return absl::OkStatus();
    for (size_t i = 0; i < header.layout.sections.size(); ++i) {
      if (header.layout.sections[i].what != SegmentSection::What::kLogits) continue;
      logits.resize(engine_.shape().vocab_size);
      cursors_.resize(std::max(cursors_.size(), i + 1));
      cursors_[i] = reinterpret_cast<char*>(logits.data());
    }
    return absl::OkStatus();
  }

  absl::Status OnIds(absl::Span<const int32_t> ids) override {
    if (ids_ == nullptr) return absl::OkStatus();  // only the compressed cache has ids
    for (const int32_t id : ids) {
      // Little-endian: the low half comes first.
      std::memcpy(ids_, &id, SizeOf(ids_dtype_));
      ids_ += SizeOf(ids_dtype_);
    }
    return absl::OkStatus();
  }

  absl::Status OnBytes(int section, std::string_view bytes) override {
    std::memcpy(cursors_[section], bytes.data(), bytes.size());
    cursors_[section] += bytes.size();
    return absl::OkStatus();
  }

  SavedSegment segment;
  std::vector<float> logits;

 private:
  absl::StatusOr<char*> AddPart(const StatePart& part, int64_t rows) {
    SavedPart saved{.part = part, .rows = rows};
    std::shared_ptr<void> memory;
    if (saved.bytes() > 0) {
      GF_ASSIGN_OR_RETURN(memory, engine_.backend().AllocateStaging(saved.bytes(), "a context"));
      saved.ranges.push_back({static_cast<char*>(memory.get()), saved.bytes()});
    }
    segment.parts.emplace_back(new SavedPart(std::move(saved)), [memory](const SavedPart* part) { delete part; });
    return static_cast<char*>(memory.get());
  }

  Engine& engine_;
  char* ids_ = nullptr;  // where the next id goes
  DType ids_dtype_ = DType::kI32;
  std::vector<char*> cursors_;  // where the next bytes of each section go
};

}  // namespace

ContextModel ContextModelOf(Engine& engine) {
  ContextModel model;
  const Backend& backend = engine.backend();
  model.identity.fingerprint = Fingerprint(*engine.stage().model().checkpoint);
  model.identity.vocabulary = engine.config().vocabulary;
  model.identity.cache_dtype = Name(engine.options().stage.cache_dtype);
  model.identity.numerics =
      absl::StrCat(backend.kind() == DeviceKind::kCpu ? "cpu-" : "cuda-", Name(backend.activation_dtype()));
  model.identity.format_version = kContextFormat;
  model.vocab_size = engine.shape().vocab_size;
  for (const StatePart& part : engine.stage().saved_parts()) {
    if (!IsContextPart(part.kind)) continue;
    const std::optional<ElementType> type = ParseElementType(Name(part.dtype));
    GF_CHECK(type);
    ContextPart& same = model.parts.emplace_back(ContextPart{part.layer, part.kind, *type, {}});
    for (int axis = 0; axis < part.shape.rank(); ++axis) same.shape.push_back(part.shape[axis]);
  }
  std::sort(model.parts.begin(), model.parts.end(), [](const ContextPart& a, const ContextPart& b) {
    return std::tie(a.layer, a.kind) < std::tie(b.layer, b.kind);
  });
  return model;
}

absl::StatusOr<std::unique_ptr<LocalContext>> LocalContext::Read(const std::string& path, Engine& engine) {
  SegmentSink sink(engine);
  if (IsTunedState(path)) {
    GF_ASSIGN_OR_RETURN(const std::string file, TunedStateExchange(path, ContextModelOf(engine)));
    ExchangeParser parser(&sink);
    GF_RETURN_IF_ERROR(parser.Append(file));
    GF_RETURN_IF_ERROR(parser.Finish(nullptr));
  } else {
    GF_RETURN_IF_ERROR(ReadExchangeFile(path, &sink).status());
  }
  return std::unique_ptr<LocalContext>(new LocalContext(engine, std::move(sink.segment), std::move(sink.logits)));
}

absl::StatusOr<int> LocalContext::Open() const {
  const SavedSegment* const chain[] = {&segment_};
  GF_ASSIGN_OR_RETURN(const int slot, engine_.stage().Restore(chain));
  // The copies read memory of this object, which need not outlive the sequence.
  GF_RETURN_IF_ERROR(engine_.backend().Synchronize());
  return slot;
}

}  // namespace goldfinch
