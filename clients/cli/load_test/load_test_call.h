// One call of a load test.
#ifndef GOLDFINCH_CLIENTS_CLI_LOAD_TEST_LOAD_TEST_CALL_H_
#define GOLDFINCH_CLIENTS_CLI_LOAD_TEST_LOAD_TEST_CALL_H_

#include <cstdint>
#include <memory>

#include "clients/cli/load_test/load_test_stats.h"
#include "protos/generate.grpc.pb.h"

namespace grpc {
class ClientContext;
class Status;
}  // namespace grpc

namespace goldfinch {

// Learns what becomes of calls, on gRPC's threads. Implementations are thread-safe.
class CallObserver {
 public:
  // Since the start of the test.
  virtual double Seconds() const = 0;
  // The time between two responses with tokens of one sample, of which the second has `tokens` tokens. `group`: as in
  // the record.
  virtual void AddGap(int group, double seconds, int64_t tokens) = 0;
  // The call has ended and holds nothing any more. The observer, and the server's channel, may be destroyed as soon as
  // it has been told of all calls.
  virtual void EndCall(RequestRecord record, const grpc::Status& status) = 0;

 protected:
  ~CallObserver() = default;
};

// Starts the call and returns. `record`: what is known before. `context`: as Remote::Prepare leaves it; the call keeps
// it until just before EndCall, and the caller may keep it to cancel the call.
void StartCall(v1::Goldfinch::Stub& stub, std::shared_ptr<grpc::ClientContext> context, v1::GenerateRequest request,
               RequestRecord record, CallObserver& observer);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_LOAD_TEST_LOAD_TEST_CALL_H_
