// One call of Contexts.Export: the file of a context, piece by piece as the client takes it.
#ifndef GOLDFINCH_COORDINATOR_CALLS_EXPORT_CONTEXT_CALL_H_
#define GOLDFINCH_COORDINATOR_CALLS_EXPORT_CONTEXT_CALL_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/sha256.h"
#include "coordinator/calls/call.h"
#include "coordinator/keeper/context_transfers.h"
#include "protos/contexts.pb.h"

namespace goldfinch {

// Has one piece in the message under way and reads the next one meanwhile; further ones are read when the client has
// taken that.
class ExportContextCall final : public Call {
 public:
  // Reads what the client sent. Begin calls it once.
  using Read = absl::AnyInvocable<absl::StatusOr<FileQuery>()>;

  // `transfers` must live until the stream has ended.
  ExportContextCall(CallEnvironment* environment, const char* method, Caller caller, Deadline deadline, Read read,
                    ContextTransfers* transfers, CallStream* stream)
      : Call(environment, method, std::move(caller), deadline, stream), read_(std::move(read)), transfers_(transfers) {}

  void Begin() override;

 private:
  const google::protobuf::MessageLite& message() const override { return message_; }
  bool TakeMessage() override;
  void Stop(const absl::Status& status) override;
  std::string Work() const override;

  std::shared_ptr<ExportContextCall> Self() { return std::static_pointer_cast<ExportContextCall>(shared_from_this()); }
  void Opened(absl::StatusOr<std::shared_ptr<ContextTransfers::File>> file);
  void PieceRead(absl::StatusOr<std::string> piece);
  void DigestRead(const absl::StatusOr<Sha256Digest>& digest);
  // With mutex_ held: begins to read what comes next.
  void ReadOn();

  Read read_;
  ContextTransfers* const transfers_;
  v1::ExportContextResponse message_;  // belongs to the write under way; guarded by mutex_ while there is none

  // Guarded by mutex_.
  std::shared_ptr<ContextTransfers::File> file_;  // until the call has ended
  int64_t next_ = 0;                              // where the next piece begins that is to be read
  std::optional<std::string> piece_;              // has been read, and no message has it yet
  std::optional<Sha256Digest> digest_;            // the same
  int64_t bytes_sent_ = 0;
  bool first_sent_ = false;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CALLS_EXPORT_CONTEXT_CALL_H_
