#include "coordinator/grpc/service_test_util.h"

#include <chrono>
#include <future>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "prometheus/registry.h"

namespace goldfinch {

void FakeDispatcher::Refuse(absl::Status status) {
  const std::lock_guard<std::mutex> lock(mutex_);
  refusal_ = std::move(status);
}

void FakeDispatcher::SetModel(std::shared_ptr<const ServedModel> model) {
  const std::lock_guard<std::mutex> lock(mutex_);
  model_ = std::move(model);
}

uint64_t FakeDispatcher::Next() {
  std::unique_lock<std::mutex> lock(mutex_);
  const uint64_t number = next_++;
  changed_.wait(lock, [&] { return entries_.contains(number); });
  return number;
}

Request FakeDispatcher::RequestOf(uint64_t number) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return entries_.at(number).request;
}

void FakeDispatcher::Deliver(uint64_t number, const std::function<void(RequestSink&)>& call) {
  std::promise<void> delivered;
  thread_.Post([&] {
    std::shared_ptr<RequestSink> sink;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      sink = entries_.at(number).sink;
    }
    if (sink) call(*sink);
    delivered.set_value();
  });
  delivered.get_future().get();
}

RequestSink::Verdict FakeDispatcher::Token(uint64_t number, int sample, const OutputToken& token) {
  auto verdict = RequestSink::Verdict::kStop;
  Deliver(number, [&](RequestSink& sink) { verdict = sink.OnToken(sample, token); });
  return verdict;
}

void FakeDispatcher::Tokens(uint64_t number, int sample, const std::vector<int32_t>& ids) {
  for (const int32_t id : ids) Token(number, sample, {.id = id});
}

void FakeDispatcher::SampleDone(uint64_t number, int sample, Finish finish) {
  Deliver(number, [&](RequestSink& sink) { sink.OnSampleDone(sample, finish); });
}

void FakeDispatcher::Progress(uint64_t number, int64_t tokens) {
  Deliver(number, [&](RequestSink& sink) { sink.OnProgress(tokens); });
}

RequestSink::Verdict FakeDispatcher::Scores(uint64_t number, int continuation, int64_t first,
                                            const std::vector<OutputToken>& tokens, const std::string& logits) {
  auto verdict = RequestSink::Verdict::kStop;
  Deliver(number, [&](RequestSink& sink) { verdict = sink.OnScores(continuation, first, tokens, logits); });
  return verdict;
}

void FakeDispatcher::End(uint64_t number, const absl::Status& status, const RequestUsage& usage) {
  std::shared_ptr<RequestSink> sink;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    sink = std::exchange(entries_.at(number).sink, nullptr);
  }
  if (sink) sink->OnDone(status, usage);
}

void FakeDispatcher::ContextOf(uint64_t number, int64_t tokens) {
  Deliver(number, [&](RequestSink& sink) { sink.OnContext(tokens); });
}

void FakeDispatcher::Kept(uint64_t number, const NamedContext& context) {
  Deliver(number, [&](RequestSink& sink) { sink.OnKept(context); });
}

void FakeDispatcher::AnswerContexts(absl::StatusOr<NamedContextPage> page) {
  const std::lock_guard<std::mutex> lock(mutex_);
  contexts_ = std::move(page);
}

std::string FakeDispatcher::asked() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return asked_;
}

// Notes what was asked, and answers on the fake's thread with what the test has given.
template <typename T, typename Pick>
void FakeDispatcher::Ask(std::string question, Answer<T> answer, const Pick& pick) {
  absl::StatusOr<NamedContextPage> page;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    asked_ = std::move(question);
    page = contexts_;
  }
  thread_.Post([page = std::move(page), answer = std::move(answer), pick]() mutable {
    if (page.ok()) {
      answer(pick(*page));
    } else {
      answer(page.status());
    }
  });
}

void FakeDispatcher::GetContext(const std::string& name_space, GetContextQuery query, Answer<NamedContext> answer) {
  Ask(absl::StrCat(name_space, " get ", query.name, " ", query.ids_begin, " ", query.ids_max), std::move(answer),
      [](const NamedContextPage& page) { return page.contexts.at(0); });
}

void FakeDispatcher::ListContexts(const std::string& name_space, ListContextsQuery query,
                                  Answer<NamedContextPage> answer) {
  Ask(absl::StrCat(name_space, " list ", query.after, " ", query.count), std::move(answer),
      [](const NamedContextPage& page) { return page; });
}

void FakeDispatcher::ForkContext(const std::string& name_space, ForkContextQuery query, Answer<NamedContext> answer) {
  Ask(absl::StrCat(name_space, " fork ", query.context, " ", query.context_tokens.value_or(-1), " ", query.keep_as.name,
                   " ", query.keep_as.etag, " ", query.keep_as.expire_after_seconds.value_or(-1)),
      std::move(answer), [](const NamedContextPage& page) { return page.contexts.at(0); });
}

void FakeDispatcher::RenameContext(const std::string& name_space, RenameContextQuery query,
                                   Answer<NamedContext> answer) {
  Ask(absl::StrCat(name_space, " rename ", query.name, " ", query.new_name, " ", query.etag), std::move(answer),
      [](const NamedContextPage& page) { return page.contexts.at(0); });
}

void FakeDispatcher::PinContext(const std::string& name_space, PinContextQuery query, Answer<NamedContext> answer) {
  Ask(absl::StrCat(name_space, " pin ", query.name, " ", query.pinned, " ", query.etag), std::move(answer),
      [](const NamedContextPage& page) { return page.contexts.at(0); });
}

void FakeDispatcher::DeleteContext(const std::string& name_space, DeleteContextQuery query,
                                   Answer<std::string> answer) {
  Ask(absl::StrCat(name_space, " delete ", query.name, " ", query.etag), std::move(answer),
      [](const NamedContextPage& page) { return page.contexts.at(0).name; });
}

void FakeDispatcher::SetFiles(Files files) {
  const std::lock_guard<std::mutex> lock(mutex_);
  files_ = std::move(files);
}

void FakeDispatcher::OpenExport(const std::string& name_space, ExportContextQuery query, Answer<StoredContext> answer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  asked_ = absl::StrCat(name_space, " export ", query.name, " ", query.etag);
  thread_.Post([open = files_.open_export, query = std::move(query), answer = std::move(answer)]() mutable {
    answer(open(query));
  });
}

void FakeDispatcher::OpenImport(Answer<ImportTarget> answer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  thread_.Post([open = files_.open_import, answer = std::move(answer)]() mutable { answer(open()); });
}

void FakeDispatcher::MakeRoom(const std::string& name_space, int64_t bytes,
                              Answer<std::shared_ptr<const void>> answer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  asked_ = absl::StrCat(name_space, " room ", bytes);
  thread_.Post([make = files_.make_room, bytes, answer = std::move(answer)]() mutable { answer(make(bytes)); });
}

void FakeDispatcher::KeepImport(const std::string& name_space, ImportedContext imported, Answer<NamedContext> answer) {
  const std::lock_guard<std::mutex> lock(mutex_);
  asked_ = absl::StrCat(name_space, " keep ", imported.keep_as.name, " ", imported.ids.size());
  thread_.Post([keep = files_.keep_import, imported = std::move(imported), answer = std::move(answer)]() mutable {
    answer(keep(std::move(imported)));
  });
}

void FakeDispatcher::Done(uint64_t number, const absl::Status& status, const RequestUsage& usage) {
  Deliver(number, [&](RequestSink&) { End(number, status, usage); });
}

absl::Status FakeDispatcher::WaitCancelled(uint64_t number) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait(lock, [&] { return entries_.at(number).cancelled.has_value(); });
  return *entries_.at(number).cancelled;
}

bool FakeDispatcher::WaitResumed(uint64_t number, int times, double seconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  return changed_.wait_for(lock, std::chrono::duration<double>(seconds),
                           [&] { return entries_.at(number).resumed >= times; });
}

int FakeDispatcher::Resumed(uint64_t number) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return entries_.at(number).resumed;
}

int FakeDispatcher::live() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  int count = 0;
  for (const auto& [number, entry] : entries_) count += entry.sink != nullptr;
  return count;
}

std::shared_ptr<const ServedModel> FakeDispatcher::model() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return model_;
}

void FakeDispatcher::FillClusterInfo(v1::GetClusterInfoResponse* info) const { info->set_requests_running(live()); }

absl::StatusOr<uint64_t> FakeDispatcher::Submit(Request request, std::shared_ptr<RequestSink> sink) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (refusal_) return *refusal_;
  const uint64_t number = entries_.size() + 1;
  entries_[number] = {.request = std::move(request), .sink = std::move(sink), .cancelled = {}};
  changed_.notify_all();
  return number;
}

void FakeDispatcher::Cancel(uint64_t number, absl::Status status) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    Entry& entry = entries_.at(number);
    if (!entry.sink || entry.cancelled) return;
    entry.cancelled = status;
    changed_.notify_all();
  }
  thread_.Post([this, number, status] { End(number, status, {}); });
}

void FakeDispatcher::Resume(uint64_t number) {
  const std::lock_guard<std::mutex> lock(mutex_);
  ++entries_.at(number).resumed;
  changed_.notify_all();
}

ServiceHarness::ServiceHarness(ServiceOptions options, ServerOptions server) {
  server.health_service = kPublicServiceName;
  auto started = Server::Start(server, MakePublicServices(&dispatcher_, &dispatcher_, &metrics_, options));
  GF_CHECK(started.ok()) << started.status();
  server_ = *std::move(started);
  stub_ = Connect({});
  contexts_ = v1::Contexts::NewStub(
      grpc::CreateChannel(absl::StrCat("127.0.0.1:", server_->port()), grpc::InsecureChannelCredentials()));
}

std::unique_ptr<v1::Goldfinch::Stub> ServiceHarness::Connect(grpc::ChannelArguments arguments) const {
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return v1::Goldfinch::NewStub(grpc::CreateCustomChannel(absl::StrCat("127.0.0.1:", server_->port()),
                                                          grpc::InsecureChannelCredentials(), arguments));
}

double ServiceHarness::Counted(const std::string& name, const std::string& label) const {
  double sum = 0;
  for (const prometheus::MetricFamily& family : metrics_.registry()->Collect()) {
    if (family.name != "goldfinch_" + name) continue;
    for (const prometheus::ClientMetric& metric : family.metric) {
      for (const auto& entry : metric.label) {
        if (entry.value == label) sum += metric.counter.value;
      }
    }
  }
  return sum;
}

std::string Answer::text(uint32_t index) const {
  std::string text;
  for (const v1::GenerateResponse& response : responses) {
    if (response.index() == index) text += response.text();
  }
  return text;
}

std::vector<uint32_t> Answer::ids(uint32_t index) const {
  std::vector<uint32_t> ids;
  for (const v1::GenerateResponse& response : responses) {
    if (response.index() != index) continue;
    for (const v1::Token& token : response.tokens()) ids.push_back(token.id());
  }
  return ids;
}

v1::FinishReason Answer::finish(uint32_t index) const {
  v1::FinishReason reason = v1::FINISH_REASON_UNSPECIFIED;
  for (const v1::GenerateResponse& response : responses) {
    if (response.index() != index) continue;
    // No response of a sample follows its last one.
    GF_CHECK(reason == v1::FINISH_REASON_UNSPECIFIED) << response.DebugString();
    reason = response.finish_reason();
  }
  return reason;
}

Answer ReadAll(grpc::ClientReader<v1::GenerateResponse>* reader) {
  Answer answer;
  for (v1::GenerateResponse response; reader->Read(&response);) answer.responses.push_back(response);
  answer.status = reader->Finish();
  return answer;
}

std::vector<int32_t> Ids(const std::string& text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(static_cast<unsigned char>(c) + 1);
  return ids;
}

v1::GenerateRequest Simple() {
  v1::GenerateRequest message;
  message.set_text("hello");
  return message;
}

grpc::Status ErrorOf(ServiceHarness& harness, const v1::GenerateRequest& message) {
  grpc::ClientContext context;
  return ReadAll(harness.stub().Generate(&context, message).get()).status;
}

}  // namespace goldfinch
