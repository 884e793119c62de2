// What the services (coordinator/grpc) ask of the coordinator's core. It works on token ids and knows neither text
// nor sockets.
#ifndef GOLDFINCH_COORDINATOR_SCHEDULER_DISPATCHER_H_
#define GOLDFINCH_COORDINATOR_SCHEDULER_DISPATCHER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "base/sampling.h"
#include "coordinator/scheduler/client.h"

namespace goldfinch {

namespace v1 {
class GetClusterInfoResponse;
class GetModelInfoResponse;
}  // namespace v1

class Tokenizer;
struct NamedContext;

// A validated request. Exactly one of `generate` and `score` is set.
struct Request {
  struct Generate {
    int64_t max_tokens = 256;  // the most that each sample may have; 0 only reads the prompt
    bool may_shorten = false;  // fewer will do if no more fit after a context: nobody asked for so many
    int samples = 1;           // sample i uses the seed sampling.seed + i
    SamplingOptions sampling;
    std::vector<int32_t> stop_ids;  // besides token 0, the end of text, which always ends a sample
  };
  struct Score {
    std::vector<std::vector<int32_t>> continuations;  // none of them empty
    bool score_prompt = false;
    int top_logprobs = 0;
    bool logits = false;
  };

  // How the sequence is kept under a name when it ends.
  struct KeepAs {
    std::string name;
    std::optional<double> expire_after_seconds = {};  // after the last use; none: never
    uint64_t etag = 0;  // of the context that it takes the place of; 0: there must be none, unless it is `context`
    bool expire_as_before = false;  // what it takes the place of keeps its expiry
  };

  std::string id;                          // for logs and metrics
  std::shared_ptr<const Client> client;    // who asks; null: a client without a name and without limits
  std::vector<int32_t> prompt;             // all in the vocabulary; at least one token, or none after a context
  int priority = 0;                        // higher ones go first
  std::optional<double> deadline_seconds;  // counted from now
  bool progress = false;                   // whether OnProgress is called
  bool cache = true;                       // whether it uses what is kept of texts, and leaves something
  std::string context;                     // whose tokens come before those of the prompt; empty: none
  // Only the first ones of the context; none: all. When the scheduler gets the request, they are in `prompt`, this is
  // their number, and breakpoints count from the first of them.
  std::optional<int64_t> context_tokens;
  // The keeper's number of the tuned state that the context begins with; 0: none. Set by ContextKeeper::Resolve.
  uint64_t tuned = 0;
  std::optional<KeepAs> keep_as;     // only with one sample
  std::vector<int64_t> breakpoints;  // positions of the prompt where the sequence is to be saved, in any order
  int64_t held_bytes = 0;            // what its sink keeps in memory for it until it has ended
  std::optional<Generate> generate;
  std::optional<Score> score;

  // Whether it may begin with something that is kept; once context_tokens has been set.
  bool uses_kept() const { return cache || context_tokens.has_value(); }
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
  int64_t cached_tokens = 0;  // of these, those that were not read, since they were kept of another text
  int64_t completion_tokens = 0;
  double queue_seconds = 0;
  double prefill_seconds = 0;
  double decode_seconds = 0;
  int64_t cache_bytes = 0;
  int64_t transformer_cache_bytes = 0;
  int recoveries = 0;
  int64_t reread_tokens = 0;  // beside those: after a loss or a parking, or for a further sample or continuation
  int parkings = 0;           // sequences that gave up their slot for others and were read again
};

// Receives what becomes of one request. The coordinator's thread calls it, one call at a time, never from within
// Submit, Cancel or Resume. Every call must return at once. OnDone is the last call.
class RequestSink {
 public:
  enum class Verdict {
    kContinue,
    kPause,  // the client does not keep up: nothing more is computed for the request until Resume. The results of Steps
             // in flight still come: a token for each sample, or scores.
    kStop,   // this sample ends here; OnSampleDone(kStop) follows
  };

  virtual ~RequestSink() = default;
  // Called first, with the number of context tokens that precede the prompt.
  virtual void OnContext(int64_t /*tokens*/) {}
  virtual void OnProgress(int64_t prompt_tokens_done) = 0;
  // The next token of a sample, including the one that ends it.
  virtual Verdict OnToken(int sample, const OutputToken& token) = 0;
  virtual void OnSampleDone(int sample, Finish finish) = 0;
  // Scored tokens in their order, of a continuation or, if `continuation` is -1, of the prompt. `first` is the index of
  // the first one in that text, to which a context does not belong. `logits` is [tokens, vocab] float32 little-endian,
  // or empty. Returns kContinue or kPause.
  virtual Verdict OnScores(int continuation, int64_t first, absl::Span<const OutputToken> tokens,
                           std::string logits) = 0;
  // The request's sequence is kept as this context, by its keep_as. OnDone follows.
  virtual void OnKept(const NamedContext& /*context*/) {}
  // An OK status means that all samples or scores have been delivered, and that the sequence is kept if it was to be.
  virtual void OnDone(const absl::Status& status, const RequestUsage& usage) = 0;
};

// The model that is served. Immutable.
struct ServedModel {
  std::shared_ptr<const v1::GetModelInfoResponse> info;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::shared_ptr<const SamplerVocabulary> vocabulary;
};

// Thread-safe. No call waits for a model to run; FillClusterInfo waits until the coordinator's thread has answered.
class Dispatcher {
 public:
  virtual ~Dispatcher() = default;

  // Null until a worker has described the model.
  virtual std::shared_ptr<const ServedModel> model() const = 0;
  // Whether a group is ready and new requests are taken.
  virtual bool ready() const = 0;
  virtual void FillClusterInfo(v1::GetClusterInfoResponse* info) const = 0;

  // Returns the request's number, for Cancel and Resume. From then on the sink is called. OnDone comes for every
  // request that was taken, with RESOURCE_EXHAUSTED if the queue is full, a limit of its client is reached, or the
  // request can never fit a group, and with DEADLINE_EXCEEDED if it would certainly miss its deadline. What contexts
  // add to this is in coordinator/keeper/context_keeper.h. UNAVAILABLE, after which the sink is not called, if no group
  // is ready or the server is shutting down.
  virtual absl::StatusOr<uint64_t> Submit(Request request, std::shared_ptr<RequestSink> sink) = 0;
  // Ends the request with `status`. Does nothing if it has ended.
  virtual void Cancel(uint64_t number, absl::Status status) = 0;
  // Lets a request go on after kPause. Does nothing if it is not paused.
  virtual void Resume(uint64_t number) = 0;
};

// The error of whatever needs Dispatcher::model() while that is null.
inline absl::Status NoModel() { return absl::UnavailableError("no worker has described the model yet"); }

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_SCHEDULER_DISPATCHER_H_
