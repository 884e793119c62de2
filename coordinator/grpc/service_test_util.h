// A server on a port of its own over a dispatcher that does what the test says.
#ifndef GOLDFINCH_COORDINATOR_GRPC_SERVICE_TEST_UTIL_H_
#define GOLDFINCH_COORDINATOR_GRPC_SERVICE_TEST_UTIL_H_

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/dispatcher.h"
#include "coordinator/grpc/server.h"
#include "coordinator/grpc/service.h"
#include "coordinator/grpc/test_model.h"
#include "coordinator/grpc/work_queue.h"
#include "coordinator/metrics.h"
#include "grpcpp/support/channel_arguments.h"
#include "protos/generate.grpc.pb.h"

namespace goldfinch {

// Keeps the contract of Dispatcher: sinks are called by one thread, and never within Submit, Cancel or Resume. The
// calls of the test wait until that thread has made them. What a test waits for comes, or the test runs into its time
// limit.
class FakeDispatcher : public Dispatcher {
 public:
  // What Submit returns; then nothing is taken.
  void Refuse(absl::Status status);
  void SetModel(std::shared_ptr<const ServedModel> model);

  // Waits for the next request in the order of their submission.
  uint64_t Next();
  Request RequestOf(uint64_t number);
  // Nothing is delivered for a request that has ended.
  RequestSink::Verdict Token(uint64_t number, int sample, const OutputToken& token);
  void Tokens(uint64_t number, int sample, const std::vector<int32_t>& ids);
  void SampleDone(uint64_t number, int sample, Finish finish);
  void Progress(uint64_t number, int64_t tokens);
  RequestSink::Verdict Scores(uint64_t number, int continuation, int64_t first, const std::vector<OutputToken>& tokens,
                              const std::string& logits = "");
  void Done(uint64_t number, const absl::Status& status, const RequestUsage& usage = {});

  // As what the request was ended from outside.
  absl::Status WaitCancelled(uint64_t number);
  // Waits until it has been resumed so often, at most so long. Whether it was.
  bool WaitResumed(uint64_t number, int times, double seconds);
  int Resumed(uint64_t number);
  int live() const;

  std::shared_ptr<const ServedModel> model() const override;
  bool ready() const override { return true; }
  void FillClusterInfo(v1::GetClusterInfoResponse* info) const override;
  absl::StatusOr<uint64_t> Submit(Request request, std::shared_ptr<RequestSink> sink) override;
  void Cancel(uint64_t number, absl::Status status) override;
  void Resume(uint64_t number) override;

 private:
  struct Entry {
    Request request;
    std::shared_ptr<RequestSink> sink;  // null: ended
    std::optional<absl::Status> cancelled;
    int resumed = 0;
  };

  // Runs it on the fake's thread, with the request's sink.
  void Deliver(uint64_t number, const std::function<void(RequestSink&)>& call);
  void End(uint64_t number, const absl::Status& status, const RequestUsage& usage);

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<const ServedModel> model_ = MakeTestModel();
  std::optional<absl::Status> refusal_;
  std::map<uint64_t, Entry> entries_;
  uint64_t next_ = 1;
  WorkQueue thread_{1};
};

// A client and a server.
class EdgeHarness {
 public:
  explicit EdgeHarness(ServiceOptions options = {}, ServerOptions server = {});

  FakeDispatcher& dispatcher() { return dispatcher_; }
  v1::Goldfinch::Stub& stub() { return *stub_; }
  Server& server() { return *server_; }
  // Another client, with a connection of its own.
  std::unique_ptr<v1::Goldfinch::Stub> Connect(grpc::ChannelArguments arguments) const;
  // The number of the metric `name` of the label value `label`.
  double Counted(const std::string& name, const std::string& label) const;

 private:
  FakeDispatcher dispatcher_;
  Metrics metrics_{"test"};
  std::unique_ptr<Server> server_;
  std::unique_ptr<v1::Goldfinch::Stub> stub_;
};

// What a stream of Generate came to.
struct Answer {
  std::vector<v1::GenerateResponse> responses;
  grpc::Status status;

  std::string text(uint32_t index = 0) const;
  std::vector<uint32_t> ids(uint32_t index = 0) const;
  v1::FinishReason finish(uint32_t index = 0) const;
};

// Reads to the end.
Answer ReadAll(grpc::ClientReader<v1::GenerateResponse>* reader);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_SERVICE_TEST_UTIL_H_
