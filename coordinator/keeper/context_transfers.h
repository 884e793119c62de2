// Files of contexts on their way between clients and the store: what Export and Import of contexts.proto do, but for
// their messages.
//
// The files are read and written on threads of their own, one piece at a time; a client has at most one of these
// threads, and clients take turns (base/fair_queue.h). An export has a piece or two in memory, and an import none: what
// comes goes to a file of the store that has no name yet.
#ifndef GOLDFINCH_COORDINATOR_KEEPER_CONTEXT_TRANSFERS_H_
#define GOLDFINCH_COORDINATOR_KEEPER_CONTEXT_TRANSFERS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/sha256.h"
#include "coordinator/keeper/context_directory.h"
#include "coordinator/scheduler/client.h"
#include "coordinator/scheduler/dispatcher.h"
#include "coordinator/store/upload_table.h"

namespace goldfinch {

// Hexadecimal digits of FileQuery::version.
inline constexpr size_t kFileVersionDigits = 16;
// The most bytes of a file in one message.
inline constexpr int64_t kTransferPieceBytes = int64_t{1} << 20;

struct TransferLimits {
  int threads = 4;
  int exports_max = 64;
  int exports_of_client_max = 8;
  UploadLimits uploads;
};

// Which file of which context is wanted.
struct FileQuery {
  ExportContextQuery context;
  std::string version;  // what the file's etag has besides that of the context; empty: any
  int64_t offset = 0;   // of the first byte
};

// The next part of an import.
struct ImportPart {
  std::string upload;
  int64_t offset = 0;
  std::string data;
  // With the last part.
  struct Last {
    Request::KeepAs keep_as;
    Sha256Digest sha256{};
  };
  std::optional<Last> last;
};

struct ImportProgress {
  int64_t received = 0;
  std::optional<NamedContext> context;  // what it has become, at the end
};

// Thread-safe. Calls return at once. The directory outlives it.
class ContextTransfers {
 private:
  class State;

 public:
  template <typename T>
  using Answer = ContextDirectory::Answer<T>;

  // The file of a context, which stays in the store for as long as this lives.
  class File {
   public:
    virtual ~File() = default;
    // Two files that have the same one have the same bytes.
    virtual const std::string& etag() const = 0;
    virtual int64_t bytes() const = 0;
    // The bytes [offset, offset + size), which must be in the file; at most kTransferPieceBytes. One call at a time,
    // ReadDigest included. Errors are those of ContextExport.
    virtual void Read(int64_t offset, int64_t size, Answer<std::string> answer) = 0;
    // The SHA-256 of the whole file. Reads what was not read in order from its beginning on.
    virtual void ReadDigest(Answer<Sha256Digest> answer) = 0;
  };

  explicit ContextTransfers(ContextDirectory* directory, const TransferLimits& limits = {});
  // What is under way is not answered.
  ~ContextTransfers();

  // ABORTED if the context, or its file, is another one than the query names; INVALID_ARGUMENT for an offset behind the
  // end; RESOURCE_EXHAUSTED for too many exports; else ContextDirectory::OpenExport's.
  void OpenFile(std::shared_ptr<const Client> client, FileQuery query, Answer<std::shared_ptr<File>> answer);

  // Takes a part of a file, or only tells how far the upload is if there is no data and it is not the last one. ABORTED
  // if the part does not begin where the upload is; UNAVAILABLE while another call works with the upload. All other
  // errors end the upload: ContextImport's and ContextDirectory's. An upload that has become a context answers with
  // that for a while.
  void Import(std::shared_ptr<const Client> client, ImportPart part, Answer<ImportProgress> answer);

  // Ends uploads whose time is over. Call it every few seconds.
  void Sweep();

 private:
  const std::shared_ptr<State> state_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_KEEPER_CONTEXT_TRANSFERS_H_
