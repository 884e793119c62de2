// What the edge (gRPC services) asks of the coordinator's core, in tokens: it knows nothing of text or of sockets.
#ifndef GOLDFINCH_COORDINATOR_DISPATCHER_H_
#define GOLDFINCH_COORDINATOR_DISPATCHER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/sampling.h"

namespace goldfinch {

namespace v1 {
class GetClusterInfoResponse;
class GetModelInfoResponse;
}  // namespace v1

class Tokenizer;

// A validated request. Exactly one of generate and score is set.
struct Request {
  struct Generate {
    int64_t max_tokens = 256;  // of each sample; 0 only reads the prompt
    int samples = 1;           // sample i draws with sampling.seed + i
    SamplingOptions sampling;
    std::vector<int32_t> stop_ids;  // token 0 always stops, unless it is banned
  };
  struct Score {
    std::vector<std::vector<int32_t>> continuations;  // none empty
    bool score_prompt = false;
    int top_logprobs = 0;
    bool logits = false;
  };

  std::string id;                          // for logs
  std::vector<int32_t> prompt;             // at least one token, each in the vocabulary
  int priority = 0;                        // higher goes first
  std::optional<double> deadline_seconds;  // from now
  bool progress = false;                   // call OnProgress
  std::optional<Generate> generate;
  std::optional<Score> score;
};

struct OutputToken {
  struct Likely {
    int32_t id = 0;
    float logprob = 0;
  };

  int32_t id = 0;
  std::optional<float> logprob = {};
  std::vector<Likely> top = {};
};

enum class Finish { kEndOfText, kStop, kLength };

struct RequestUsage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;
  double queue_seconds = 0;
  double prefill_seconds = 0;
  double decode_seconds = 0;
  int64_t cache_bytes = 0;
  int64_t transformer_cache_bytes = 0;
  int recoveries = 0;
};

// What becomes of one request. Called by the coordinator's thread, one call at a time, never within Submit, Cancel or
// Resume; every call must return at once. OnDone is the last.
class RequestSink {
 public:
  enum class Verdict {
    kContinue,
    kPause,  // the client does not keep up: nothing more is computed for the request until Resume. What is under way
             // comes yet: a token a sample, or the scores of the Steps in flight.
    kStop,   // this sample ends here; OnSampleDone(kStop) follows
  };

  virtual ~RequestSink() = default;
  virtual void OnProgress(int64_t prompt_tokens_done) = 0;
  // The next token of a sample; also the one that ends it.
  virtual Verdict OnToken(int sample, const OutputToken& token) = 0;
  virtual void OnSampleDone(int sample, Finish finish) = 0;
  // Scored tokens in order: of the prompt (continuation -1), or of a continuation. `first` is the number of the first
  // one in that text. `logits` is [tokens, vocab] float32 little-endian, or empty. kContinue or kPause.
  virtual Verdict OnScores(int continuation, int64_t first, absl::Span<const OutputToken> tokens,
                           std::string logits) = 0;
  // OK: all samples or scores have been delivered.
  virtual void OnDone(const absl::Status& status, const RequestUsage& usage) = 0;
};

// The model that is served, once a worker has described it. Immutable.
struct ServedModel {
  std::shared_ptr<const v1::GetModelInfoResponse> info;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<const SamplerVocabulary> vocabulary;
};

// Thread-safe; no call blocks on work, but FillClusterInfo waits for the coordinator's thread to look.
class Dispatcher {
 public:
  virtual ~Dispatcher() = default;

  // Null until the model is known.
  virtual std::shared_ptr<const ServedModel> model() const = 0;
  // A group is ready, and new requests are taken.
  virtual bool ready() const = 0;
  virtual void FillClusterInfo(v1::GetClusterInfoResponse* info) const = 0;

  // Returns a number for Cancel and Resume; the sink's calls follow, OnDone for every request that was taken, with
  // RESOURCE_EXHAUSTED if the queue is full or the request can never fit the caches. DEADLINE_EXCEEDED: the prompt
  // alone takes longer than the deadline. UNAVAILABLE: no group, or the server is ending.
  virtual absl::StatusOr<uint64_t> Submit(Request request, std::shared_ptr<RequestSink> sink) = 0;
  // Ends the request with `status`. Nothing, if it has ended.
  virtual void Cancel(uint64_t number, absl::Status status) = 0;
  // After kPause.
  virtual void Resume(uint64_t number) = 0;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_DISPATCHER_H_
