// A server on its own port, over a dispatcher that does what the test says.
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

#include "base/work_queue.h"
#include "coordinator/calls/test_model.h"
#include "coordinator/grpc/server.h"
#include "coordinator/grpc/service.h"
#include "coordinator/keeper/context_directory.h"
#include "coordinator/metrics/metrics.h"
#include "coordinator/scheduler/dispatcher.h"
#include "grpcpp/client_context.h"
#include "grpcpp/support/channel_arguments.h"
#include "protos/contexts.grpc.pb.h"
#include "protos/generate.grpc.pb.h"

namespace goldfinch {

// Keeps the contracts of Dispatcher and ContextDirectory: sinks are called by one thread, and never within Submit,
// Cancel or Resume. The test's calls wait until that thread has made them. If what a test waits for does not happen,
// the test runs into its time limit.
class FakeDispatcher : public Dispatcher, public ContextDirectory {
 public:
  // From now on Submit takes no request and returns this.
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
  void ContextOf(uint64_t number, int64_t tokens);
  void Kept(uint64_t number, const NamedContext& context);
  void Done(uint64_t number, const absl::Status& status, const RequestUsage& usage = {});
  // What the directory answers from now on: the page, or the first one of it.
  void AnswerContexts(absl::StatusOr<NamedContextPage> page);
  // The last question to the directory: namespace, verb and arguments.
  std::string asked() const;
  // What is done about files of contexts, on the fake's thread.
  struct Files {
    std::function<absl::StatusOr<StoredContext>(const ExportContextQuery& query)> open_export;
    std::function<absl::StatusOr<ImportTarget>()> open_import;
    std::function<absl::StatusOr<std::shared_ptr<const void>>(int64_t bytes)> make_room;
    std::function<absl::StatusOr<NamedContext>(ImportedContext imported)> keep_import;
  };
  void SetFiles(Files files);

  // Waits until the request has been cancelled, and returns the status that Cancel was given.
  absl::Status WaitCancelled(uint64_t number);
  // Waits, at most `seconds`, until the request has been resumed so often. Returns whether it has.
  bool WaitResumed(uint64_t number, int times, double seconds);
  int Resumed(uint64_t number);
  int live() const;

  std::shared_ptr<const ServedModel> model() const override;
  bool ready() const override { return true; }
  void FillClusterInfo(v1::GetClusterInfoResponse* info) const override;
  absl::StatusOr<uint64_t> Submit(Request request, std::shared_ptr<RequestSink> sink) override;
  void Cancel(uint64_t number, absl::Status status) override;
  void Resume(uint64_t number) override;

  void GetContext(const std::string& name_space, GetContextQuery query, Answer<NamedContext> answer) override;
  void ListContexts(const std::string& name_space, ListContextsQuery query, Answer<NamedContextPage> answer) override;
  void ForkContext(const std::string& name_space, ForkContextQuery query, Answer<NamedContext> answer) override;
  void RenameContext(const std::string& name_space, RenameContextQuery query, Answer<NamedContext> answer) override;
  void PinContext(const std::string& name_space, PinContextQuery query, Answer<NamedContext> answer) override;
  void DeleteContext(const std::string& name_space, DeleteContextQuery query, Answer<std::string> answer) override;
  void OpenExport(const std::string& name_space, ExportContextQuery query, Answer<StoredContext> answer) override;
  void OpenImport(Answer<ImportTarget> answer) override;
  void MakeRoom(const std::string& name_space, int64_t bytes, Answer<std::shared_ptr<const void>> answer) override;
  void KeepImport(const std::string& name_space, ImportedContext imported, Answer<NamedContext> answer) override;

 private:
  struct Entry {
    Request request;
    std::shared_ptr<RequestSink> sink;  // null once the request has ended
    std::optional<absl::Status> cancelled;
    int resumed = 0;
  };

  // Runs `call` on the fake's thread, with the request's sink.
  void Deliver(uint64_t number, const std::function<void(RequestSink&)>& call);
  void End(uint64_t number, const absl::Status& status, const RequestUsage& usage);
  template <typename T, typename Pick>
  void Ask(std::string question, Answer<T> answer, const Pick& pick);

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::shared_ptr<const ServedModel> model_ = MakeTestModel();
  std::optional<absl::Status> refusal_;
  std::map<uint64_t, Entry> entries_;
  uint64_t next_ = 1;
  absl::StatusOr<NamedContextPage> contexts_ = NamedContextPage();
  std::string asked_;
  Files files_;
  WorkQueue thread_{1};
};

// A client and a server.
class ServiceHarness {
 public:
  explicit ServiceHarness(ServiceOptions options = {}, ServerOptions server = {});

  FakeDispatcher& dispatcher() { return dispatcher_; }
  v1::Goldfinch::Stub& stub() { return *stub_; }
  v1::Contexts::Stub& contexts() { return *contexts_; }
  Server& server() { return *server_; }
  // Another client, with its own connection.
  std::unique_ptr<v1::Goldfinch::Stub> Connect(grpc::ChannelArguments arguments) const;
  // The sum of the metric `name` over all series with the label value `label`.
  double Counted(const std::string& name, const std::string& label) const;

 private:
  FakeDispatcher dispatcher_;
  Metrics metrics_{"test"};
  std::unique_ptr<Server> server_;
  std::unique_ptr<v1::Goldfinch::Stub> stub_;
  std::unique_ptr<v1::Contexts::Stub> contexts_;
};

// All responses of a stream of Generate, and its status.
struct Answer {
  std::vector<v1::GenerateResponse> responses;
  grpc::Status status;

  std::string text(uint32_t index = 0) const;
  std::vector<uint32_t> ids(uint32_t index = 0) const;
  v1::FinishReason finish(uint32_t index = 0) const;
};

// Reads the stream to its end.
Answer ReadAll(grpc::ClientReader<v1::GenerateResponse>* reader);

// Ids of single bytes.
std::vector<int32_t> Ids(const std::string& text);
// A request to continue "hello".
v1::GenerateRequest Simple();

// One call of Generate and its reader.
struct Stream {
  Stream(ServiceHarness& harness, const v1::GenerateRequest& message)
      : reader(harness.stub().Generate(&context, message)) {}

  grpc::ClientContext context;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader;
};

// The status of a call of Generate.
grpc::Status ErrorOf(ServiceHarness& harness, const v1::GenerateRequest& message);

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_SERVICE_TEST_UTIL_H_
