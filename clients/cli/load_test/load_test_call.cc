#include "clients/cli/load_test/load_test_call.h"

#include <optional>
#include <utility>
#include <vector>

#include "grpcpp/client_context.h"
#include "grpcpp/support/client_callback.h"

namespace goldfinch {
namespace {

// It deletes itself when it has ended.
class Call final : public grpc::ClientReadReactor<v1::GenerateResponse> {
 public:
  Call(std::shared_ptr<grpc::ClientContext> context, v1::GenerateRequest request, RequestRecord record,
       CallObserver& observer)
      : observer_(observer),
        context_(std::move(context)),
        request_(std::move(request)),
        record_(std::move(record)),
        last_seconds_(request_.n() == 0 ? 1 : request_.n()) {}

  void Start(v1::Goldfinch::Stub& stub) {
    record_.sent_seconds = observer_.Seconds();
    stub.async()->Generate(context_.get(), &request_, this);
    StartRead(&response_);
    StartCall();
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    if (response_.has_usage()) record_.prompt_tokens = static_cast<int64_t>(response_.usage().prompt_tokens());
    if (response_.tokens_size() > 0 && response_.index() < last_seconds_.size()) {
      AddTokens(response_.tokens_size(), last_seconds_[response_.index()]);
    }
    StartRead(&response_);
  }

  void OnDone(const grpc::Status& status) override {
    record_.done_seconds = observer_.Seconds();
    CallObserver& observer = observer_;
    RequestRecord record = std::move(record_);
    // Deleted before EndCall lets the sending thread go on: the context shares ownership of the channel, and the
    // channel must not be destroyed here, on a thread that its destructor waits for.
    delete this;
    observer.EndCall(std::move(record), status);
  }

 private:
  // `last_seconds`: when the sample had its tokens before these.
  void AddTokens(int64_t tokens, std::optional<double>& last_seconds) {
    const double now = observer_.Seconds();
    if (!record_.first_token_seconds) record_.first_token_seconds = now;
    if (last_seconds) observer_.AddGap(record_.group, now - *last_seconds, tokens);
    last_seconds = now;
    record_.output_tokens += tokens;
  }

  CallObserver& observer_;
  const std::shared_ptr<grpc::ClientContext> context_;
  const v1::GenerateRequest request_;
  v1::GenerateResponse response_;
  RequestRecord record_;
  std::vector<std::optional<double>> last_seconds_;  // [samples]
};

}  // namespace

void StartCall(v1::Goldfinch::Stub& stub, std::shared_ptr<grpc::ClientContext> context, v1::GenerateRequest request,
               RequestRecord record, CallObserver& observer) {
  (new Call(std::move(context), std::move(request), std::move(record), observer))->Start(stub);
}

}  // namespace goldfinch
