#include "worker/stage_runner.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstring>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "base/safe_text.h"
#include "base/status.h"
#include "base/token_ids.h"
#include "protos/cluster.pb.h"
#include "protos/cluster_protocol.h"
#include "worker/sampling_message.h"

namespace goldfinch {
namespace {

static_assert(kChannelMessages == Transport::kAheadSends, "base/stage_memory.h plans memory for so many messages");

using cluster::v1::ChunkResult;
using cluster::v1::NewSequence;
using cluster::v1::Step;
using cluster::v1::StepDone;
using ChunkMessage = cluster::v1::Chunk;
using SteadyClock = std::chrono::steady_clock;

// Stands in place of a token that the host has to draw, or has to say why it cannot be drawn.
constexpr int32_t kNotDrawn = -1;

}  // namespace

StageRunner::StageRunner(const StageAssignment& assignment, Backend& backend, Stage& stage, ContextShelf* shelf)
    : assignment_(assignment),
      backend_(backend),
      stage_(stage),
      shelf_(shelf),
      shape_(stage.model().shape),
      is_last_(stage.extent().is_last()),
      reads_ids_(stage.extent().reads_ids()),
      id_bytes_(IdBytes(shape_.vocab_size)),
      drops_before_(stage.gold_tiers() != nullptr ? stage.gold_tiers()->drops() : 0) {}

absl::StatusOr<std::unique_ptr<StageRunner>> StageRunner::Create(const StageAssignment& assignment, Backend& backend,
                                                                 Stage& stage, ContextShelf* shelf) {
  GF_CHECK_EQ(stage.extent().first_layer, assignment.first_layer);
  GF_CHECK_EQ(stage.extent().last_layer, assignment.last_layer);
  std::unique_ptr<StageRunner> runner(new StageRunner(assignment, backend, stage, shelf));
  if (assignment.links.hidden_from >= 0) {
    GF_RETURN_IF_ERROR(
        runner->AllocateBuffer({assignment.hidden_rows_max, runner->shape_.width}, DType::kF32, &runner->hidden_));
  }
  if (assignment.links.compressed_from >= 0) {
    const DType dtype = assignment.options.cache_dtype;
    const int64_t row_width = CompressedRowWidth(dtype, runner->shape_.compressed);
    GF_RETURN_IF_ERROR(
        runner->AllocateBuffer({assignment.options.max_step_tokens, row_width}, dtype, &runner->compressed_));
  }
  if (!backend.host_accessible() && runner->is_last_) {
    runner->staging_bytes_ = assignment.options.max_logit_rows * runner->shape_.vocab_size * SizeOf(DType::kF32);
    runner->staging_ = std::make_unique_for_overwrite<char[]>(runner->staging_bytes_);
  }
  runner->ids_.reserve(assignment.options.max_step_tokens);
  if (shelf != nullptr) {
    if (shelf->bytes() > 0) stage.ReserveSaving();
    const absl::Span<const StatePart> parts = stage.saved_parts();
    shelf->SetParts({.parts = {parts.begin(), parts.end()},
                     .vocab_size = runner->shape_.vocab_size,
                     .max_sequence_tokens = assignment.options.max_sequence_tokens});
  }
  return runner;
}

StageRunner::~StageRunner() {
  for (const auto& [id, sequence] : sequences_) stage_.Close(sequence.slot);
}

absl::Status StageRunner::AllocateBuffer(const Shape& shape, DType dtype, Tensor* buffer) {
  *buffer = {nullptr, dtype, shape};
  GF_ASSIGN_OR_RETURN(std::shared_ptr<void> memory, backend_.Allocate(buffer->bytes(), "rows from other stages"));
  buffer->data = memory.get();
  memory_.push_back(std::move(memory));
  return absl::OkStatus();
}

bool RunningStep::Poll() {
  if (rows_ != nullptr) {
    if (!rows_->reached()) return false;
    rows_ = nullptr;
    receive_end_ = Clock::now();
  }
  if (done_ == nullptr || !done_->reached()) return false;
  if (end_ == Clock::time_point()) end_ = Clock::now();
  return true;
}

// Time that sends were blocked by a slow receiver is no work, either.
void RunningStep::FillTimes(Clock::time_point free_since, StepDone* done) const {
  const auto seconds = [](Clock::duration time) { return std::max(0.0, std::chrono::duration<double>(time).count()); };
  const double all = seconds(end_ - std::max(begin_, free_since));
  const double bubble = seconds(receive_end_ - std::max(receive_begin_, free_since)) + send_seconds_;
  done->set_bubble_seconds(bubble);
  done->set_busy_seconds(std::max(0.0, all - bubble));
}

absl::Status StageRunner::Run(const Step& step, Transport& transport, StepDone* done, RunningStep* running) {
  running->begin_ = SteadyClock::now();
  ++steps_;
  GF_RETURN_IF_ERROR(SaveWithoutChunks(step, done));
  GF_RETURN_IF_ERROR(Close(step));
  GF_RETURN_IF_ERROR(Open(step));
  GF_RETURN_IF_ERROR(ReadChunks(step));
  StageInput input;
  StageOutput output;
  GF_RETURN_IF_ERROR(Receive(transport, done, running, &input));
  GF_RETURN_IF_ERROR(stage_.Forward(chunks_, input, &output));
  GF_RETURN_IF_ERROR(Send(transport, output, running));
  GF_RETURN_IF_ERROR(SaveWithChunks(step, output.logits, done));
  if (is_last_) GF_RETURN_IF_ERROR(Draw(step, done));
  if (is_last_) GF_RETURN_IF_ERROR(FillResults(step, output.logits, done));
  GF_RETURN_IF_ERROR(Fork(step));
  done->set_cache_bytes(stage_.CacheBytes());
  done->set_cache_tokens(stage_.CacheTokens());
  if (shelf_ != nullptr) done->set_shelf_bytes(shelf_->used_bytes());
  FillTiers(done);
  running->done_ = backend_.queue().Record();
  return absl::OkStatus();
}

void StageRunner::FillTiers(StepDone* done) const {
  const GoldTiers* const tiers = stage_.gold_tiers();
  if (tiers == nullptr) return;
  done->set_gold_kept_bytes(tiers->kept_bytes());
  done->set_gold_tier_drops(tiers->drops() - drops_before_);
  std::array<uint32_t, 3> sequences = {};  // by GoldTier
  for (const auto& [id, sequence] : sequences_) ++sequences[static_cast<size_t>(tiers->tier(sequence.slot))];
  done->set_gold_compressed_sequences(sequences[static_cast<size_t>(GoldTier::kCompressed)]);
  done->set_gold_shared_sequences(sequences[static_cast<size_t>(GoldTier::kShared)]);
  done->set_gold_full_sequences(sequences[static_cast<size_t>(GoldTier::kFull)]);
}

absl::StatusOr<StageRunner::Sequence*> StageRunner::Find(uint64_t id, const char* field) {
  const auto found = sequences_.find(id);
  if (found == sequences_.end()) return Invalid(field, " names sequence ", id, ", which is not open");
  return &found->second;
}

absl::Status StageRunner::Close(const Step& step) {
  for (const uint64_t id : step.close()) {
    GF_ASSIGN_OR_RETURN(const Sequence* sequence, Find(id, "close"));
    stage_.Close(sequence->slot);
    sequences_.erase(id);
  }
  return absl::OkStatus();
}

// The sampler is one that has observed nothing.
absl::Status StageRunner::Add(const NewSequence& message, absl::StatusOr<int> slot, std::optional<Sampler> sampler) {
  GF_RETURN_IF_ERROR(slot.status());
  Sequence& sequence = sequences_[message.sequence()];
  sequence.slot = *slot;
  if (!sampler) return absl::OkStatus();
  sequence.sampler.emplace(*std::move(sampler));
  for (const uint32_t id : message.observed()) {
    if (id >= shape_.vocab_size) {
      return Invalid("observed token ", id, " of sequence ", message.sequence(), " is outside the vocabulary of ",
                     shape_.vocab_size);
    }
    sequence.sampler->Observe(static_cast<int32_t>(id));
  }
  return absl::OkStatus();
}

// `of` is open.
absl::Status StageRunner::AddCopy(const NewSequence& message, const Sequence& of, const char* field) {
  std::optional<Sampler> sampler;
  if (is_last_ && message.has_seed()) {
    if (!of.sampler) {
      return Invalid(field, ": sequence ", message.sequence(), " has a seed, what it is a copy of does not sample");
    }
    sampler.emplace(of.sampler->WithSeed(message.seed()));
  }
  return Add(message, stage_.Fork(of.slot), std::move(sampler));
}

absl::Status StageRunner::Open(const Step& step) {
  for (int i = 0; i < step.open_size(); ++i) {
    const NewSequence& message = step.open(i);
    if (sequences_.contains(message.sequence())) return Invalid("open: sequence ", message.sequence(), " is open");
    if (message.copy_of() != 0) {
      GF_RETURN_IF_ERROR(OpenCopy(step, i));
      continue;
    }
    std::optional<Sampler> sampler;
    if (is_last_ && message.has_sampling()) {
      GF_ASSIGN_OR_RETURN(SamplingOptions options, ReadSampling(message.sampling(), *assignment_.vocabulary));
      sampler.emplace(std::move(options), assignment_.vocabulary);
    }
    if (is_last_ && message.draw() && (message.restore().empty() || !message.has_sampling())) {
      return Invalid("draw: sequence ", message.sequence(), " is not opened with restore and sampling");
    }
    GF_RETURN_IF_ERROR(Add(message, message.restore().empty() ? stage_.Open() : Restore(message), std::move(sampler)));
  }
  return absl::OkStatus();
}

absl::Status StageRunner::ReadChunks(const Step& step) {
  ids_.clear();
  chunks_.clear();
  owners_.clear();
  for (const ChunkMessage& message : step.chunks()) {
    const uint64_t id = message.sequence();
    GF_ASSIGN_OR_RETURN(Sequence * sequence, Find(id, "chunk"));
    if (sequence->step == steps_) return Invalid("two chunks of sequence ", id);
    sequence->step = steps_;
    if (message.position() != static_cast<uint64_t>(stage_.position(sequence->slot))) {
      return Invalid("position of sequence ", id, " is ", message.position(), ", it has taken ",
                     stage_.position(sequence->slot), " tokens");
    }
    const int64_t left = assignment_.options.max_step_tokens - static_cast<int64_t>(ids_.size());
    if (message.tokens() < 1 || message.tokens() > left) {
      return Invalid("tokens of sequence ", id, " are ", message.tokens(), ", the limit is ", left,
                     " of max_step_tokens, and at least 1");
    }
    if (message.logit_rows() > message.tokens()) {
      return Invalid("logit_rows of sequence ", id, " are ", message.logit_rows(), " of ", message.tokens(), " tokens");
    }
    const size_t first = ids_.size();
    GF_RETURN_IF_ERROR(ReadIds(message));
    GF_RETURN_IF_ERROR(CheckResultFields(message));
    if (is_last_ && message.sample() && !sequence->sampler) {
      return Invalid("sample: sequence ", id, " was opened without sampling");
    }
    chunks_.push_back({sequence->slot, {ids_.data() + first, message.tokens()}, message.logit_rows()});
    owners_.push_back(sequence);
  }
  return absl::OkStatus();
}

// Appends to ids_, which has memory for a whole step, so that the spans of chunks_ stay valid.
absl::Status StageRunner::ReadIds(const ChunkMessage& message) {
  if (!reads_ids_) {  // Stage::Forward only counts them then
    ids_.insert(ids_.end(), message.tokens(), 0);
    return absl::OkStatus();
  }
  const std::string& bytes = message.ids();
  if (bytes.size() != uint64_t{message.tokens()} * id_bytes_) {
    return Invalid("ids of sequence ", message.sequence(), " are ", bytes.size(), " bytes, expected ", id_bytes_,
                   " for each of ", message.tokens(), " tokens");
  }
  for (size_t at = 0; at < bytes.size(); at += id_bytes_) {
    uint32_t id = 0;
    for (int64_t byte = id_bytes_ - 1; byte >= 0; --byte) id = id << 8 | static_cast<uint8_t>(bytes[at + byte]);
    if (id >= shape_.vocab_size) {
      return Invalid("token id ", id, " of sequence ", message.sequence(), " is outside the vocabulary of ",
                     shape_.vocab_size);
    }
    ids_.push_back(static_cast<int32_t>(id));
  }
  return absl::OkStatus();
}

absl::Status StageRunner::CheckResultFields(const ChunkMessage& message) const {
  if (!is_last_) return absl::OkStatus();
  const uint64_t id = message.sequence();
  if (message.sample() && (message.logit_rows() != 1 || message.targets_size() > 0)) {
    return Invalid("sample of sequence ", id, " with ", message.logit_rows(), " logit_rows and ",
                   message.targets_size(), " targets, expected 1 and 0");
  }
  if (message.targets_size() > 0 && message.targets_size() != static_cast<int64_t>(message.logit_rows())) {
    return Invalid("targets of sequence ", id, " are ", message.targets_size(), ", logit_rows are ",
                   message.logit_rows());
  }
  if (message.targets_size() == 0 && message.logit_rows() > 0 && (message.logits() || message.top_logprobs() > 0)) {
    return Invalid("logits or top_logprobs of sequence ", id, " without targets");
  }
  if (message.top_logprobs() > kLogprobsMax) {
    return Invalid("top_logprobs of sequence ", id, " is ", message.top_logprobs(), ", the limit is ", kLogprobsMax);
  }
  for (const uint32_t target : message.targets()) {
    if (target >= shape_.vocab_size) {
      return Invalid("target ", target, " of sequence ", id, " is outside the vocabulary of ", shape_.vocab_size);
    }
  }
  return absl::OkStatus();
}

absl::Status StageRunner::Receive(Transport& transport, StepDone* done, RunningStep* running, StageInput* input) {
  const StageRows rows = stage_.InputRows(chunks_);
  running->receive_begin_ = running->receive_end_ = SteadyClock::now();
  if (rows == StageRows{}) return absl::OkStatus();
  if (rows.compressed > 0) {
    const Tensor compressed{compressed_.data, compressed_.dtype, {rows.compressed, compressed_.dim(1)}};
    GF_RETURN_IF_ERROR(transport.Recv(assignment_.links.compressed_from, compressed));
    input->compressed = compressed;
    done->set_compressed_bytes(compressed.bytes());
    done->set_id_bytes(rows.compressed * id_bytes_);
  }
  if (rows.hidden > 0) {
    const Tensor hidden{hidden_.data, DType::kF32, {rows.hidden, shape_.width}};
    GF_RETURN_IF_ERROR(transport.Recv(assignment_.links.hidden_from, hidden));
    input->hidden = hidden;
    done->set_hidden_bytes(hidden.bytes());
  }
  running->rows_ = backend_.queue().Record();
  running->Poll();
  return absl::OkStatus();
}

ConstTensor StageRunner::OnHost(ConstTensor rows) {
  if (staging_ == nullptr || !rows) return rows;
  GF_CHECK_LE(rows.bytes(), staging_bytes_);
  backend_.CopyToHost(rows, staging_.get());
  return {staging_.get(), rows.dtype, rows.shape};
}

absl::Status StageRunner::Send(Transport& transport, const StageOutput& output, RunningStep* running) {
  const auto start = SteadyClock::now();
  if (output.compressed) {
    for (const int to : assignment_.links.compressed_to) GF_RETURN_IF_ERROR(transport.Send(to, output.compressed));
  }
  if (output.hidden) GF_RETURN_IF_ERROR(transport.Send(assignment_.links.hidden_to, output.hidden));
  running->send_seconds_ = std::chrono::duration<double>(SteadyClock::now() - start).count();
  return absl::OkStatus();
}

absl::Status StageRunner::FillResults(const Step& step, ConstTensor logits, StepDone* done) {
  DrawOnDevice(step, logits);
  GF_RETURN_IF_ERROR(backend_.status());  // after a fault, drawn_ holds anything
  int64_t row = 0;
  for (int i = 0; i < step.chunks_size(); ++i) {
    const ChunkMessage& message = step.chunks(i);
    const int64_t count = message.logit_rows(), first = std::exchange(row, row + count);
    if (count == 0) continue;
    ChunkResult* result = done->add_results();
    result->set_sequence(message.sequence());
    if (message.sample() && drawn_[first] >= 0) {
      owners_[i]->sampler->Observe(drawn_[first]);
      result->set_token(drawn_[first]);
    } else if (message.sample()) {
      SampleInto(RowsOnHost(logits, first, count), *owners_[i], stage_.position(owners_[i]->slot), result);
    }
    if (message.targets_size() > 0) ScoreInto(message, RowsOnHost(logits, first, count), result);
  }
  return backend_.status();
}

void StageRunner::DrawOnDevice(const Step& step, ConstTensor logits) {
  drawn_.assign(logits ? logits.dim(0) : 0, kNotDrawn);
  if (staging_ == nullptr || !logits || !backend_.can_sample(shape_.vocab_size)) return;
  const SamplerVocabulary& vocabulary = *assignment_.vocabulary;
  draws_.clear();
  int64_t row = 0;
  const auto draw = [&] {  // from the rows before `row` that draws_ has
    if (draws_.empty()) return;
    const auto count = static_cast<int64_t>(draws_.size()), first = row - count;
    backend_.Sample(Rows(logits, first, count), vocabulary.limit(), vocabulary.holes(), draws_,
                    absl::MakeSpan(drawn_).subspan(first, count));
    draws_.clear();
  };
  for (int i = 0; i < step.chunks_size(); ++i) {
    const ChunkMessage& message = step.chunks(i);
    if (message.logit_rows() == 0) continue;
    if (message.sample() && !owners_[i]->sampler->wants_logprobs()) {
      if (changes_.size() == draws_.size()) changes_.emplace_back();
      draws_.push_back(owners_[i]->sampler->Row(stage_.position(owners_[i]->slot), changes_[draws_.size()]));
    } else {
      draw();
    }
    row += message.logit_rows();
  }
  draw();
}

absl::Span<const float> StageRunner::RowsOnHost(ConstTensor logits, int64_t first, int64_t count) {
  return {OnHost(Rows(logits, first, count)).f32(), static_cast<size_t>(count * shape_.vocab_size)};
}

namespace {

void AddTop(absl::Span<const TokenLogprob> top, ChunkResult* result) {
  cluster::v1::TopLogprobs* message = result->add_top();
  for (const TokenLogprob& entry : top) {
    message->add_ids(entry.id);
    message->add_logprobs(entry.logprob);
  }
}

}  // namespace

void StageRunner::SampleInto(absl::Span<const float> logits, Sequence& sequence, int64_t position,
                             ChunkResult* result) {
  const absl::StatusOr<Token> token = sequence.sampler->Sample(logits, position, scratch_);
  if (!token.ok()) {
    result->set_error(SafeText(std::string(token.status().message()), kClusterTextBytesMax));
    return;
  }
  sequence.sampler->Observe(token->id);
  result->set_token(token->id);
  if (!sequence.sampler->wants_logprobs()) return;
  result->add_logprobs(token->logprob);
  AddTop(token->top, result);
}

void StageRunner::ScoreInto(const ChunkMessage& message, absl::Span<const float> logits, ChunkResult* result) {
  const auto first = static_cast<int64_t>(message.position() + message.tokens() - message.logit_rows()) + 1;
  for (int row = 0; row < message.targets_size(); ++row) {
    const absl::StatusOr<float> logprob = scorer_.Score(
        logits.subspan(row * shape_.vocab_size, shape_.vocab_size), first + row,
        static_cast<int32_t>(message.targets(row)), static_cast<int>(message.top_logprobs()), *assignment_.vocabulary);
    if (!logprob.ok()) {
      result->clear_logprobs();
      result->clear_top();
      result->set_error(SafeText(std::string(logprob.status().message()), kClusterTextBytesMax));
      return;
    }
    result->add_logprobs(*logprob);
    AddTop(scorer_.top(), result);
  }
  if (message.logits()) {
    result->set_logits(reinterpret_cast<const char*>(logits.data()), logits.size() * sizeof(float));
  }
}

absl::Status StageRunner::Fork(const Step& step) {
  for (int i = 0; i < step.chunks_size(); ++i) {
    for (const NewSequence& fork : step.chunks(i).forks()) {
      if (sequences_.contains(fork.sequence())) return Invalid("forks: sequence ", fork.sequence(), " is open");
      GF_RETURN_IF_ERROR(AddCopy(fork, *owners_[i], "forks"));
    }
  }
  return absl::OkStatus();
}

}  // namespace goldfinch
