#include "coordinator/grpc/service.h"

#include <memory>
#include <utility>
#include <vector>

#include "base/status.h"
#include "coordinator/calls/call.h"
#include "coordinator/calls/generate_call.h"
#include "coordinator/calls/score_call.h"
#include "coordinator/calls/validation.h"
#include "coordinator/grpc/call_service.h"
#include "coordinator/scheduler/dispatcher.h"
#include "protos/generate.pb.h"
#include "tokenizer/tokenizer.h"

namespace goldfinch {
namespace {

class GoldfinchService final : public CallService {
 public:
  explicit GoldfinchService(std::shared_ptr<PublicDoor> door) : CallService(std::move(door)) {
    AddStream<GenerateCall, v1::GenerateRequest>({"/goldfinch.v1.Goldfinch/Generate", "Generate"});
    AddStream<ScoreCall, v1::ScoreRequest>({"/goldfinch.v1.Goldfinch/Score", "Score"});
    AddUnary<v1::TokenizeRequest, v1::TokenizeResponse>(
        {"/goldfinch.v1.Goldfinch/Tokenize", "Tokenize"},
        [this](const auto& request, auto* response) { return Tokenize(request, response); });
    AddUnary<v1::DetokenizeRequest, v1::DetokenizeResponse>(
        {"/goldfinch.v1.Goldfinch/Detokenize", "Detokenize"},
        [this](const auto& request, auto* response) { return Detokenize(request, response); });
    AddUnary<v1::GetModelInfoRequest, v1::GetModelInfoResponse>(
        {"/goldfinch.v1.Goldfinch/GetModelInfo", "GetModelInfo"},
        [this](const auto&, auto* response) { return GetModelInfo(response); });
    // On another thread, because it may wait for the coordinator's thread.
    AddUnary<v1::GetClusterInfoRequest, v1::GetClusterInfoResponse>(
        {"/goldfinch.v1.Goldfinch/GetClusterInfo", "GetClusterInfo", /*for_operators=*/true, /*slow=*/true},
        [this](const auto&, auto* response) {
          environment().dispatcher->FillClusterInfo(response);
          return absl::OkStatus();
        });
  }

 private:
  template <typename CallType, typename Message>
  void AddStream(const Method& method) {
    Add(method, [this](Context* context, Caller caller) {
      return Stream(context, std::move(caller), [this](StreamReactor* stream, Caller who, auto deadline) {
        const auto read = [stream](Message* message) { return ParseMessage(stream->message(), message); };
        return std::make_shared<CallType>(&environment(), std::move(who), deadline, read, stream);
      });
    });
  }

  absl::Status Tokenize(const v1::TokenizeRequest& request, v1::TokenizeResponse* response) {
    const std::shared_ptr<const ServedModel> model = environment().dispatcher->model();
    if (model == nullptr) return NoModel();
    std::vector<int32_t> ids;
    model->tokenizer->Encode(request.text(), &ids);
    response->mutable_ids()->Assign(ids.begin(), ids.end());
    return absl::OkStatus();
  }

  absl::Status Detokenize(const v1::DetokenizeRequest& request, v1::DetokenizeResponse* response) {
    const std::shared_ptr<const ServedModel> model = environment().dispatcher->model();
    if (model == nullptr) return NoModel();
    GF_ASSIGN_OR_RETURN(*response, goldfinch::Detokenize(request, *model, bytes_max()));
    return absl::OkStatus();
  }

  absl::Status GetModelInfo(v1::GetModelInfoResponse* response) {
    const std::shared_ptr<const ServedModel> model = environment().dispatcher->model();
    if (model == nullptr) return NoModel();
    *response = *model->info;
    return absl::OkStatus();
  }
};

}  // namespace

std::shared_ptr<grpc::Service> MakeGoldfinchService(std::shared_ptr<PublicDoor> door) {
  return std::make_shared<GoldfinchService>(std::move(door));
}

std::vector<std::shared_ptr<grpc::Service>> MakePublicServices(Dispatcher* dispatcher, ContextDirectory* contexts,
                                                               Metrics* metrics, const ServiceOptions& options) {
  const auto door = std::make_shared<PublicDoor>(dispatcher, contexts, metrics, options);
  std::vector<std::shared_ptr<grpc::Service>> services = {MakeGoldfinchService(door)};
  if (contexts != nullptr) services.push_back(MakeContextsService(door, contexts));
  return services;
}

}  // namespace goldfinch
