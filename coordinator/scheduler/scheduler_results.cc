// Scheduler: what becomes of the results of a Step.
#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/check.h"
#include "base/status.h"
#include "base/token_ids.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/scheduler_state.h"

namespace goldfinch {

absl::Status Scheduler::Apply(int replica, StepResult* result, double now) {
  const auto found = groups_.find(replica);
  GF_CHECK(found != groups_.end()) << "replica " << replica;
  Group& group = *found->second;
  if (group.steps.empty() || group.steps.front().id != result->id) {
    return absl::InternalError(absl::StrCat("step ", result->id, " was answered out of order"));
  }
  std::vector<ChunkInFlight> chunks = std::move(group.steps.front().chunks);
  group.steps.pop_front();
  size_t used = 0;
  for (const ChunkInFlight& chunk : chunks) {
    StepResult::Chunk* answer = nullptr;
    if (chunk.logit_rows > 0) {
      if (used >= result->chunks.size() || result->chunks[used].sequence != chunk.sequence) {
        return absl::InternalError(absl::StrCat("step ", result->id, ": no result for sequence ", chunk.sequence));
      }
      answer = &result->chunks[used++];
    }
    const auto sequence = sequences_.find(chunk.sequence);
    if (sequence == sequences_.end()) continue;  // its request has ended meanwhile
    GF_RETURN_IF_ERROR(ApplyChunk(chunk, *sequence->second, answer, now));
  }
  if (used != result->chunks.size()) {
    return absl::InternalError(
        absl::StrCat("step ", result->id, ": ", result->chunks.size() - used, " unexpected results"));
  }
  group.spare.push_back(std::move(chunks));
  return absl::OkStatus();
}

// Counts what the chunk has read for the first time, and what was read before.
void Scheduler::CountChunk(const ChunkInFlight& chunk, Sequence& sequence, double now) {
  RequestState& state = *sequence.owner;
  if (const int64_t begun = std::exchange(sequence.begun, 0); begun > state.prompt_read) {
    const int64_t spared = begun - state.prompt_read;
    events_.prompt_tokens += spared;
    events_.cached_tokens += spared;
    state.usage.cached_tokens += spared;
    state.prompt_read = begun;
  }
  if (chunk.reads) {
    const int64_t prompt_end = std::min(chunk.end, state.prompt_tokens());
    const int64_t prompt_again = std::max<int64_t>(std::min(prompt_end, state.prompt_read) - chunk.begin, 0);
    const int64_t answer_begin = std::max(chunk.begin, state.prompt_tokens());
    const int64_t answer_again = std::max<int64_t>(std::min(chunk.end, sequence.reached) - answer_begin, 0);
    events_.reread_tokens += prompt_again + answer_again;
    state.usage.reread_tokens += prompt_again + answer_again;
    if (prompt_end > state.prompt_read) {
      events_.prompt_tokens += prompt_end - state.prompt_read;
      state.prompt_read = prompt_end;
      state.losses = 0;
      if (state.request.progress) state.sink->OnProgress(prompt_end);
    }
  }
  sequence.reached = std::max(sequence.reached, chunk.end);
  if (sequence.caught_up < 0 && chunk.end > sequence.reached_before) {
    sequence.caught_up = now;
    sequence.lost_runs = 0;
  }
}

// `result` is null if the chunk has no logit rows. `sequence` may not exist any more when this returns.
absl::Status Scheduler::ApplyChunk(const ChunkInFlight& chunk, Sequence& sequence, StepResult::Chunk* result,
                                   double now) {
  RequestState& state = *sequence.owner;
  CountChunk(chunk, sequence, now);
  if (result != nullptr && !result->error.empty()) {
    End(state, absl::InternalError(result->error), now);
    return absl::OkStatus();
  }
  if (sequence.finish && chunk.end == state.End(sequence)) {
    FinishSequence(sequence, *sequence.finish, now);
    return absl::OkStatus();
  }
  if (state.request.score) return result == nullptr ? absl::OkStatus() : TakeScores(chunk, sequence, result, now);
  if (result != nullptr) return TakeToken(sequence, result, now);
  // With max_tokens 0 the request ends when its prompt has been read.
  if (chunk.end == state.End(sequence)) FinishSequence(sequence, Finish::kLength, now);
  return absl::OkStatus();
}

absl::Status Scheduler::TakeToken(Sequence& sequence, StepResult::Chunk* result, double now) {
  RequestState& state = *sequence.owner;
  const Request::Generate& generate = *state.request.generate;
  const bool wants_logprob = generate.sampling.logprobs.has_value();
  if (result->token >= vocab_size_) {
    return absl::InternalError(
        absl::StrCat("sequence ", sequence.id, ": token ", result->token, " is not below vocab_size ", vocab_size_));
  }
  if (result->logprobs.size() != (wants_logprob ? 1 : 0) || result->top.size() > 1) {
    return absl::InternalError(absl::StrCat("sequence ", sequence.id, ": the result of one sampled token has ",
                                            result->logprobs.size(), " logprobs and ", result->top.size(),
                                            " lists of top logprobs"));
  }
  OutputToken token{static_cast<int32_t>(result->token)};
  if (wants_logprob) token.logprob = result->logprobs[0];
  if (!result->top.empty()) token.top = std::move(result->top[0]);
  if (sequence.last_token_time >= 0) {
    events_.inter_token_seconds.push_back(now - sequence.last_token_time);
  } else if (state.first_token < 0) {
    state.first_token = now;
    events_.first_token_seconds.push_back(now - state.submitted);
  }
  sequence.last_token_time = state.last_token = now;
  ++events_.completion_tokens;
  ++events_.sampled_tokens;
  events_.sampled_positions += state.prompt_tokens() + static_cast<int64_t>(sequence.after_prompt.size());
  ++state.usage.completion_tokens;
  state.losses = 0;
  sequence.after_prompt.push_back(token.id);
  sequence.awaiting_token = false;
  if (CachePagesFor(state.End(sequence)) > HeldPages(sequence)) state.group->full.push_back(sequence.id);

  const RequestSink::Verdict verdict = state.sink->OnToken(sequence.index, token);
  if (verdict == RequestSink::Verdict::kPause) Pause(state, now);
  const bool stops = verdict == RequestSink::Verdict::kStop ||
                     std::find(generate.stop_ids.begin(), generate.stop_ids.end(), token.id) != generate.stop_ids.end();
  std::optional<Finish> finish;
  if (token.id == kEndOfTextId) {
    finish = Finish::kEndOfText;
  } else if (stops) {
    finish = Finish::kStop;
  } else if (static_cast<int64_t>(sequence.after_prompt.size()) >= generate.max_tokens) {
    finish = Finish::kLength;
  }
  if (finish && !state.request.keep_as) {
    FinishSequence(sequence, *finish, now);
    return absl::OkStatus();
  }
  if (finish) {
    sequence.finish = finish;
    if (keeper_ != nullptr) SaveToEnd(sequence, sequence.scheduled);
  }
  if (!state.paused) sequence.lane->ready.push_back(sequence.id);
  return absl::OkStatus();
}

absl::Status Scheduler::TakeScores(const ChunkInFlight& chunk, Sequence& sequence, StepResult::Chunk* result,
                                   double now) {
  RequestState& state = *sequence.owner;
  const Request::Score& score = *state.request.score;
  const auto rows = static_cast<size_t>(chunk.logit_rows);
  const size_t logit_bytes = result->logits.size();
  if (result->logprobs.size() != rows || (score.top_logprobs > 0 && result->top.size() != rows) ||
      logit_bytes % (rows * 4) != 0 || (logit_bytes > 0) != score.logits) {
    return absl::InternalError(absl::StrCat("sequence ", sequence.id, ": the result has ", result->logprobs.size(),
                                            " logprobs, ", result->top.size(), " lists of top logprobs and ",
                                            logit_bytes, " bytes of logits for ", rows, " rows to score"));
  }
  const int64_t first_row = chunk.end - chunk.logit_rows;
  // Rows before this position score tokens of the prompt.
  const int64_t border = std::clamp(state.prompt_tokens() - 1, first_row, chunk.end);
  std::vector<OutputToken> tokens(rows);
  for (size_t row = 0; row < rows; ++row) {
    tokens[row].id = state.Token(sequence, first_row + static_cast<int64_t>(row) + 1);
    tokens[row].logprob = result->logprobs[row];
    if (score.top_logprobs > 0) tokens[row].top = std::move(result->top[row]);
  }
  const size_t row_bytes = logit_bytes / rows;
  const auto deliver = [&](int continuation, int64_t begin, int64_t end) {
    if (begin >= end) return;
    const int64_t first = begin + 1 - (continuation < 0 ? 0 : state.prompt_tokens());
    const bool all = begin == first_row && end == chunk.end;
    std::string logits = all ? std::move(result->logits)
                             : result->logits.substr((begin - first_row) * row_bytes, (end - begin) * row_bytes);
    const RequestSink::Verdict verdict = state.sink->OnScores(
        continuation, first, absl::MakeConstSpan(tokens).subspan(begin - first_row, end - begin), std::move(logits));
    if (verdict == RequestSink::Verdict::kPause) Pause(state, now);
    if (continuation < 0) return;
    state.usage.completion_tokens += end - begin;
    events_.completion_tokens += end - begin;
  };
  // Another sequence may have delivered some of the prompt's rows meanwhile.
  deliver(-1, std::max(first_row, state.prompt_scored), border);
  deliver(sequence.index, border, chunk.end);
  state.losses = 0;
  state.prompt_scored = std::max(state.prompt_scored, border);
  if (chunk.end >= state.prompt_tokens()) sequence.delivered = chunk.end;
  if (chunk.end == state.End(sequence)) FinishSequence(sequence, Finish::kLength, now);
  return absl::OkStatus();
}

// The request ends with its last sequence: `sequence` may not exist any more when this returns.
void Scheduler::FinishSequence(Sequence& sequence, Finish finish, double now) {
  RequestState& state = *sequence.owner;
  if (state.request.generate) {
    state.finishes.push_back(finish);
    LearnAnswer(static_cast<int64_t>(sequence.after_prompt.size()));
    state.sink->OnSampleDone(sequence.index, finish);
  }
  if (state.request.keep_as) {
    const absl::Status kept = keeper_ == nullptr
                                  ? absl::FailedPreconditionError("this server keeps no contexts")
                                  : keeper_->Keep(state.group->replica, state.request,
                                                  state.Tokens(sequence, state.End(sequence), &joined_), now);
    if (!kept.ok()) return End(state, kept, now);
  }
  Release(sequence);
  sequence.done = true;
  if (--state.live == 0) return End(state, absl::OkStatus(), now);
  Requeue(state);
}

}  // namespace goldfinch
