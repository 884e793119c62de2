// What front ends ask about named contexts, besides requests over them (coordinator/scheduler/dispatcher.h).
#ifndef GOLDFINCH_COORDINATOR_KEEPER_CONTEXT_DIRECTORY_H_
#define GOLDFINCH_COORDINATOR_KEEPER_CONTEXT_DIRECTORY_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "coordinator/contexts/segment_key.h"
#include "coordinator/scheduler/dispatcher.h"
#include "coordinator/store/segment.h"

namespace goldfinch {

class SegmentStore;
class SegmentWriter;

// A context as its user sees it.
struct NamedContext {
  std::string name;
  int64_t tokens = 0;
  uint64_t etag = 0;  // another one after every change of the name, the tokens or the pin; never 0
  bool pinned = false;
  double created = 0, last_use = 0;  // Unix seconds, as is the next one
  std::optional<double> expires = {};
  // What is kept of it, over all layers of the model. It counts once, in however many places it is.
  int64_t bytes = 0;
  int64_t shared_bytes = 0;             // of these, what other contexts have, too
  std::vector<int64_t> snapshots = {};  // positions, ascending
  bool in_memory = false;               // workers have enough of it that a request need not begin from nothing
  bool on_disk = false;                 // the coordinator's disk has
  int64_t transformer_bytes = 0;        // what a transformer of the same shape would keep of its tokens
  std::vector<int32_t> ids = {};        // those that were asked for
};

struct NamedContextPage {
  std::vector<NamedContext> contexts;  // by name
  std::string next;                    // `after` of the next page; empty: this is the last one
};

// Questions about a context of the client's namespace. An etag of 0 fits any context; with one that is not the
// context's, the answer is ABORTED. NOT_FOUND: there is no context of this name.
struct GetContextQuery {
  std::string name;
  int64_t ids_begin = 0, ids_max = 0;  // which of its tokens are returned with it, as far as there are so many
};
struct ListContextsQuery {
  std::string after = {};  // only names after this one
  int count = 0;           // > 0: at most so many
};
struct ForkContextQuery {
  std::string context;
  std::optional<int64_t> context_tokens = {};  // as in Request
  Request::KeepAs keep_as;
};
struct RenameContextQuery {
  std::string name, new_name;
  uint64_t etag = 0;
};
struct PinContextQuery {
  std::string name;
  bool pinned = false;
  uint64_t etag = 0;
};
struct DeleteContextQuery {
  std::string name;
  uint64_t etag = 0;
};

struct ExportContextQuery {
  std::string name;
  uint64_t etag = 0;
};

// A context in a store.
struct StoredContext {
  uint64_t etag = 0;
  std::shared_ptr<SegmentStore> store;
  std::vector<SegmentKey> chain;     // from position 0 on; the last one has a snapshot
  std::shared_ptr<const void> hold;  // as long as it lives, they stay there
};

// Where imported contexts go, and what they must be.
struct ImportTarget {
  std::shared_ptr<SegmentStore> store;
  ContextModel model;
  int64_t tokens_max = 0;
};

// A text, or a tuned state, that has come as a whole.
struct ImportedContext {
  std::vector<int32_t> ids;               // all of its tokens; none: it is a tuned state
  std::shared_ptr<SegmentWriter> writer;  // has sealed it as one segment; whoever lets it go waits for the disk
  bool has_logits = false;
  std::shared_ptr<const void> room;  // that was made for it
  Request::KeepAs keep_as;
};

// Thread-safe. Calls return at once; the coordinator's thread gives each answer, never from within the call, and must
// not be held up by it. All are UNAVAILABLE while Dispatcher::model() is null.
class ContextDirectory {
 public:
  template <typename T>
  using Answer = absl::AnyInvocable<void(absl::StatusOr<T> answer)>;

  virtual ~ContextDirectory() = default;
  virtual void GetContext(const std::string& name_space, GetContextQuery query, Answer<NamedContext> answer) = 0;
  // A page may have fewer contexts than asked for though others follow.
  virtual void ListContexts(const std::string& name_space, ListContextsQuery query,
                            Answer<NamedContextPage> answer) = 0;
  virtual void ForkContext(const std::string& name_space, ForkContextQuery query, Answer<NamedContext> answer) = 0;
  virtual void RenameContext(const std::string& name_space, RenameContextQuery query, Answer<NamedContext> answer) = 0;
  virtual void PinContext(const std::string& name_space, PinContextQuery query, Answer<NamedContext> answer) = 0;
  // The answer is the name.
  virtual void DeleteContext(const std::string& name_space, DeleteContextQuery query, Answer<std::string> answer) = 0;

  // ---- Files of contexts. All are FAILED_PRECONDITION if there is no store. A hold, or room, must go before the
  // directory does.

  // Answers when all of the context is in the store, which takes a while if only workers have it. FAILED_PRECONDITION
  // if it has no snapshot at its end, or if not all of its bytes are anywhere.
  virtual void OpenExport(const std::string& name_space, ExportContextQuery query, Answer<StoredContext> answer) = 0;
  virtual void OpenImport(Answer<ImportTarget> answer) = 0;
  // Room for so many bytes, as long as what is answered lives. RESOURCE_EXHAUSTED names the limit.
  virtual void MakeRoom(const std::string& name_space, int64_t bytes, Answer<std::shared_ptr<const void>> answer) = 0;
  // Gives it its name. Answers when it is in the store. Errors as those of a request with keep_as.
  virtual void KeepImport(const std::string& name_space, ImportedContext imported, Answer<NamedContext> answer) = 0;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_KEEPER_CONTEXT_DIRECTORY_H_
