#include "coordinator/coordinator.h"

#include <algorithm>
#include <chrono>
#include <future>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/check.h"
#include "base/shared_key.h"
#include "base/stage_extent.h"
#include "base/token_ids.h"
#include "coordinator/metrics/metrics.h"
#include "coordinator/scheduler/step_encoding.h"
#include "protos/cluster.pb.h"
#include "protos/generate.pb.h"
#include "spdlog/spdlog.h"
#include "tokenizer/open.h"
#include "tokenizer/tokenizer.h"

namespace goldfinch {
namespace {

constexpr double kTickSeconds = 0.05;

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// What makes Now() seconds since 1970, as the system's clock is when the program starts.
double UnixOffset() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count() - Now();
}

// So that no context has an etag that another one had before a restart.
uint64_t FirstEtag() { return (uint64_t{std::random_device()() >> 1} << 32) + 1; }

// Bit id % 8 of byte id / 8 is `bit(id)`.
std::string Bits(int64_t size, absl::FunctionRef<bool(int32_t)> bit) {
  std::string bits((size + 7) / 8, '\0');
  for (int32_t id = 0; id < size; ++id) {
    if (bit(id)) bits[id / 8] = static_cast<char>(bits[id / 8] | 1 << (id % 8));
  }
  return bits;
}

CoordinatorOptions Completed(CoordinatorOptions options) {
  options.membership.secret = MakeNonce();
  // Segments travel between shelves and the store alone.
  options.membership.contexts = options.prefix_cache && options.store != nullptr;
  return options;
}

}  // namespace

Coordinator::Coordinator(CoordinatorOptions options, Metrics* metrics)
    : options_(Completed(std::move(options))),
      metrics_(metrics),
      keeper_(options_.snapshots, UnixOffset(), FirstEtag()),
      scheduler_(options_.queue, options_.membership.replicas, options_.overcommit),
      mover_(options_.mover),
      membership_(options_.membership),
      steps_(options_.membership.replicas),
      last_answers_(options_.membership.replicas),
      members_(options_.membership.replicas),
      start_(Now()),
      no_group_since_(start_),
      next_tick_(start_),
      activity_(start_),
      traffic_(options_.traffic_half_life_seconds),
      advising_(options_.membership.replicas),
      thread_([this] {
        if (options_.prefix_cache) {
          scheduler_.SetKeeper(&keeper_);
          OpenStore();
        }
        Run();
      }) {}

Coordinator::~Coordinator() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

// ---- On any thread ----

void Coordinator::Post(Task task) const {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  changed_.notify_all();
}

void Coordinator::Drain(double timeout_seconds) {
  draining_ = true;
  // Requests end on the coordinator's thread: ask it after every tick.
  const double deadline = Now() + timeout_seconds;
  for (;;) {
    std::promise<int> requests;
    Post([&](double) { requests.set_value(scheduler_.running() + scheduler_.waiting() + keeper_.finishing()); });
    const int left = requests.get_future().get();
    if (left == 0) return;
    if (Now() >= deadline) {
      spdlog::warn("{} requests did not end within {} s (shutdown timeout)", left, timeout_seconds);
      Post([this](double now) {
        const absl::Status status = absl::UnavailableError("the server is shutting down");
        scheduler_.CancelAll(status, now);
        keeper_.FinishAll(status);
      });
      return;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait_for(lock, std::chrono::duration<double>(std::min(kTickSeconds, std::max(deadline - Now(), 0.0))));
  }
}

std::shared_ptr<const ServedModel> Coordinator::model() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return model_;
}

void Coordinator::FillClusterInfo(v1::GetClusterInfoResponse* info) const {
  std::promise<void> filled;
  Post([&](double now) {
    FillCounts(now, info);
    filled.set_value();
  });
  filled.get_future().get();
}

absl::StatusOr<uint64_t> Coordinator::Submit(Request request, std::shared_ptr<RequestSink> sink) {
  if (draining_) return absl::UnavailableError("the server is shutting down and takes no new requests");
  if (!accepting_) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return absl::UnavailableError(unavailable_reason_);
  }
  const uint64_t number = ++last_number_;
  Post([this, number, request = std::move(request), sink = std::move(sink)](double now) mutable {
    if (!request.context.empty() || request.keep_as) {
      return SubmitNamed(number, std::move(request), std::move(sink), now);
    }
    request.context_tokens.reset();  // of no context
    scheduler_.Submit(number, std::move(request), std::move(sink), now);
  });
  return number;
}

void Coordinator::Cancel(uint64_t number, absl::Status status) {
  Post([this, number, status = std::move(status)](double now) { scheduler_.Cancel(number, status, now); });
}

void Coordinator::Resume(uint64_t number) {
  Post([this, number](double) { scheduler_.Resume(number); });
}

uint64_t Coordinator::Connected(std::shared_ptr<WorkerLink> link, const std::string& address) {
  const uint64_t worker = ++last_number_;
  Post([this, worker, link = std::move(link), address](double now) mutable {
    links_.emplace(worker, std::move(link));
    membership_.Connected(worker, address, now);
  });
  return worker;
}

void Coordinator::Received(uint64_t worker, cluster::v1::FromWorker message) {
  Post([this, worker, message = std::move(message)](double now) mutable {
    HandleMessage(worker, std::move(message), now);
    const auto link = links_.find(worker);
    if (link != links_.end()) link->second->Handled();
  });
}

void Coordinator::Disconnected(uint64_t worker) {
  Post([this, worker](double now) { membership_.Disconnected(worker, now); });
}

// ---- On the coordinator's thread ----

void Coordinator::Run() {
  std::vector<Task> tasks;
  for (;;) {
    bool stop = false;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      const std::chrono::duration<double> until_tick(std::max(next_tick_ - Now(), 0.0));
      changed_.wait_for(lock, until_tick, [this] { return stop_ || !tasks_.empty(); });
      std::swap(tasks, tasks_);
      stop = stop_;
    }
    for (Task& task : tasks) {
      const double now = Now();
      task(now);
      Settle(now);
    }
    tasks.clear();
    const double now = Now();
    if (now >= next_tick_) {
      next_tick_ = now + kTickSeconds;
      Tick(now);
      Settle(now);
    }
    MoveContexts(now);
    for (int replica = 0; replica < options_.membership.replicas; ++replica) SendSteps(replica, Now());
    PublishEvents();
    if (stop) break;
  }
  scheduler_.CancelAll(absl::UnavailableError("the server is shutting down"), Now());
  keeper_.FinishAll(absl::UnavailableError("the server is shutting down"));
  PublishEvents();
  for (const auto& [worker, link] : links_) link->Close();
}

void Coordinator::Tick(double now) {
  std::vector<bool> idle;
  for (int replica = 0; replica < options_.membership.replicas; ++replica) {
    idle.push_back(scheduler_.Load(replica).sequences == 0);
    CheckSteps(replica, now);
    if (membership_.draining(replica) && steps_[replica].empty()) membership_.Drained(replica, now);
  }
  membership_.Tick(now, idle);
  keeper_.Expire(now);
  if (no_group_since_ >= 0 && now - no_group_since_ > options_.recovery_timeout_seconds) {
    v1::GetClusterInfoResponse info;
    membership_.FillClusterInfo(now, &info);
    const std::string reason =
        absl::StrCat("no group of workers has been ready for ", options_.recovery_timeout_seconds,
                     " s (recovery timeout): ", info.groups_size() > 0 ? info.groups(0).message() : "");
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      unavailable_reason_ = reason;
    }
    accepting_ = false;
    scheduler_.CancelWaiting(absl::UnavailableError(reason), now);
  }
  WatchTraffic(now);
  PublishGauges();
  LogActivity(now);
}

// Carries out the membership's effects, until there are none: handling events may cause more.
void Coordinator::Settle(double now) {
  for (;;) {
    MembershipEffects effects = membership_.TakeEffects();
    if (effects.sends.empty() && effects.closes.empty() && effects.events.empty() && effects.log.empty()) return;
    for (const std::string& line : effects.log) spdlog::info("{}", line);
    for (const auto& [worker, message] : effects.sends) {
      if (message.has_welcome() && !message.welcome().contexts_token().empty()) {
        mover_.AddWorker(worker, message.welcome().contexts_token());
      }
      const auto link = links_.find(worker);
      if (link != links_.end()) link->second->Send(message);
    }
    for (const uint64_t worker : effects.closes) {
      mover_.RemoveWorker(worker);
      const auto link = links_.find(worker);
      if (link == links_.end()) continue;
      link->second->Close();
      links_.erase(link);
    }
    for (const MembershipEffects::Event& event : effects.events) HandleEvent(event, now);
  }
}

void Coordinator::HandleEvent(const MembershipEffects::Event& event, double now) {
  switch (event.kind) {
    case MembershipEffects::Event::kModelKnown:
      return HandleModelKnown(now);
    case MembershipEffects::Event::kGenerationReady:
      return HandleGenerationReady(event.replica, now);
    case MembershipEffects::Event::kGenerationEnded:
      return HandleGenerationEnded(event.replica, now);
    case MembershipEffects::Event::kLinksMeasured:
      return PublishLinks(event.replica);
  }
}

void Coordinator::HandleModelKnown(double now) {
  const cluster::v1::Described& about = membership_.model();
  const int64_t vocab = about.vocab_size();
  absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer =
      OpenTokenizer(options_.vocab, options_.membership.model, about.vocabulary(), vocab);
  if (!tokenizer.ok()) {
    const std::string reason(tokenizer.status().message());
    spdlog::error("{}", reason);
    // What a worker says of the model must not end the coordinator.
    if (!options_.membership.description) return membership_.RejectModel(reason, now);
    if (options_.on_fatal) options_.on_fatal(tokenizer.status());
    return;
  }
  auto info = std::make_shared<v1::GetModelInfoResponse>();
  info->set_name(options_.served_model_name);
  info->set_server_version(options_.server_version);
  info->set_fingerprint(about.fingerprint());
  info->set_layers(about.layers_size());
  uint64_t weights = about.embedding_bytes() + about.head_bytes() + about.gold_shared_bytes();
  uint64_t cache = about.compressed_bytes_per_token();
  for (const auto& layer : about.layers()) {
    info->add_layer_kinds(layer.kind());
    weights += layer.weight_bytes();
    cache += layer.cache_bytes_per_token();
  }
  info->set_gold_layers(about.gold_layers());
  info->set_width(about.width());
  info->set_vocab_size(about.vocab_size());
  info->set_vocabulary((*tokenizer)->vocab_size() <= 257 ? "bytes" : "world");
  info->set_max_model_len(options_.membership.partition.max_sequence_tokens);
  info->set_weight_bytes(weights);
  info->set_state_bytes(membership_.StateBytesPerSequence());
  info->set_cache_bytes_per_token(cache);
  info->set_transformer_cache_bytes_per_token(about.transformer_cache_bytes_per_token());
  info->set_cache_dtype(options_.membership.cache_dtype);
  AttentionShape attention;
  attention.every_row = std::any_of(about.layers().begin(), about.layers().end(),
                                    [](const auto& layer) { return layer.cache_bytes_per_token() > 0; });
  if (about.gold_layers() > 0) attention.gold_rows_before = TokenShiftReach(static_cast<int>(about.gold_layers()));
  keeper_.SetModel({about.fingerprint(), about.vocabulary(), options_.membership.cache_dtype, ""},
                   {.per_token = static_cast<int64_t>(cache),
                    .snapshot = membership_.StateBytesPerSequence(),
                    .transformer_per_token = static_cast<int64_t>(about.transformer_cache_bytes_per_token())});
  scheduler_.SetModel(vocab, static_cast<int64_t>(cache),
                      static_cast<int64_t>(about.transformer_cache_bytes_per_token()), attention);

  auto model = std::make_shared<ServedModel>();
  model->info = std::move(info);
  model->vocabulary = MakeSamplerVocabulary(**tokenizer, vocab);
  model->tokenizer = *std::move(tokenizer);
  const SamplerVocabulary& vocabulary = *model->vocabulary;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    model_ = std::move(model);
  }
  membership_.SetVocabulary(Bits(vocab, [&](int32_t id) { return vocabulary.sampleable(id); }),
                            Bits(vocab, [&](int32_t id) { return vocabulary.repeats_freely(id); }), now);
}

void Coordinator::HandleGenerationReady(int replica, double now) {
  if (store_threads_ != nullptr && !store_contents_ && numerics_.empty()) {
    waiting_groups_.insert(replica);
    return;
  }
  GroupCapacity capacity = membership_.Capacity(replica);
  const double usual_seconds = membership_.OnGpus(replica) ? kGpuStepTargetSeconds : kCpuStepTargetSeconds;
  capacity.step_target_seconds = options_.step_target_seconds > 0 ? options_.step_target_seconds : usual_seconds;
  members_[replica].clear();
  for (const Membership::StageView& stage : membership_.stages(replica)) members_[replica].push_back(stage.worker);
  if (options_.prefix_cache) KeepTexts(replica, capacity.row_seconds, now);
  scheduler_.GenerationReady(replica, capacity, now);
  no_group_since_ = -1;
  accepting_ = true;
  ready_ = true;
  PublishGauges();
  PublishLinks(replica);
}

void Coordinator::HandleGenerationEnded(int replica, double now) {
  if (waiting_groups_.erase(replica) > 0) return;
  steps_[replica].clear();
  metrics_->ClearTiers(replica);
  metrics_->ClearSplit(replica);
  mover_.GenerationEnded(replica);
  SendDrops(members_[replica], keeper_.GenerationEnded(replica));
  scheduler_.GenerationEnded(replica, now);
  if (scheduler_.has_group()) return;
  no_group_since_ = now;
  ready_ = false;
  PublishGauges();
}

void Coordinator::HandleMessage(uint64_t worker, cluster::v1::FromWorker message, double now) {
  if (!message.has_step_done()) return membership_.Received(worker, std::move(message), now);
  const std::optional<StageOfWorker> from = membership_.ReceivedStepDone(worker, message.mutable_step_done(), now);
  if (from) HandleStepDone(*from, message.mutable_step_done(), now);
}

void Coordinator::HandleStepDone(const StageOfWorker& from, cluster::v1::StepDone* done, double now) {
  const auto [replica, stage] = from;
  metrics_->SetTiers(replica, stage,
                     {done->gold_compressed_sequences(), done->gold_shared_sequences(), done->gold_full_sequences(),
                      static_cast<int64_t>(done->gold_tier_drops())});
  metrics_->AddStageSeconds(replica, stage, {done->busy_seconds(), done->bubble_seconds(), done->idle_seconds()});
  if (stage > 0) {
    metrics_->AddBoundaryBytes(
        replica, stage - 1,
        {static_cast<int64_t>(done->hidden_bytes()), static_cast<int64_t>(done->compressed_bytes()),
         static_cast<int64_t>(done->id_bytes())});
  }
  std::deque<SentStep>& steps = steps_[replica];
  const auto step = std::find_if(steps.begin(), steps.end(), [&](const SentStep& one) { return one.id == done->id(); });
  if (step == steps.end() || step->answered[stage]) {
    return membership_.EndGeneration(
        replica, absl::StrCat("stage ", stage, " sent an unexpected answer to step ", done->id()), now);
  }
  step->answered[stage] = true;
  const std::vector<uint64_t> unsaved(done->unsaved().begin(), done->unsaved().end());
  const std::vector<uint64_t> known = keeper_.Unsaved(replica, unsaved);
  step->unsaved.insert(step->unsaved.end(), known.begin(), known.end());
  // No stage can have computed for longer than the Step has been on its way.
  step->busy_seconds_max = std::max(step->busy_seconds_max, std::min(done->busy_seconds(), now - step->sent_at));
  last_answers_[replica] = now;
  if (membership_.stages(replica)[stage].is_last) {
    DecodeStepDone(done, &result_);
    const absl::Status status = scheduler_.Apply(replica, &result_, now);
    if (!status.ok()) return membership_.EndGeneration(replica, std::string(status.message()), now);
  }
  ForgetAnsweredSteps(replica, now);
}

// Drops the oldest Steps as far as all stages have answered them, and tells the scheduler what they took.
void Coordinator::ForgetAnsweredSteps(int replica, double now) {
  std::deque<SentStep>& steps = steps_[replica];
  const auto answered_by_all = [](const SentStep& one) {
    return std::find(one.answered.begin(), one.answered.end(), false) == one.answered.end();
  };
  while (!steps.empty() && answered_by_all(steps.front())) {
    const SentStep& front = steps.front();
    keeper_.StepAnswered(replica, front.id, front.unsaved, now);
    if (front.work.rows > 0) {  // it does not only close sequences
      scheduler_.Measured(replica, front.work, front.busy_seconds_max, now);
      metrics_->ObserveStep(front.busy_seconds_max, scheduler_.StepTargetSeconds(replica), front.work.attended);
      activity_.CountStep(front.busy_seconds_max);
    }
    steps.pop_front();
  }
}

void Coordinator::SendDrops(const std::vector<uint64_t>& workers, const ShelfDrops& drops) {
  if (drops.empty()) return;
  cluster::v1::ToWorker message;
  message.mutable_drop()->mutable_segments()->Assign(drops.segments.begin(), drops.segments.end());
  message.mutable_drop()->mutable_snapshots()->Assign(drops.snapshots.begin(), drops.snapshots.end());
  for (const uint64_t worker : workers) {
    const auto link = links_.find(worker);
    if (link != links_.end()) link->second->Send(message);
  }
}

void Coordinator::SendSteps(int replica, double now) {
  if (waiting_groups_.contains(replica)) return;
  while (membership_.ready(replica) && !membership_.draining(replica)) {
    const bool planned = scheduler_.NextStep(replica, now, &plan_);
    if (!planned) return;
    metrics_->ObserveStepScheduling(Now() - now);
    metrics_->CountStep(static_cast<int64_t>(plan_.chunks.size()), static_cast<int64_t>(plan_.ids.size()));
    SendDrops(members_[replica], keeper_.TakeDrops(replica));
    keeper_.StepPlanned(replica, plan_.id);
    const auto& stages = membership_.stages(replica);
    StepAudience audience;
    audience.generation = membership_.generation(replica);
    audience.id_bytes = IdBytes(static_cast<int64_t>(membership_.model().vocab_size()));
    for (const Membership::StageView& stage : stages) {
      audience.reads_ids = stage.reads_ids;
      audience.is_last = stage.is_last;
      cluster::v1::ToWorker message;
      EncodeStep(plan_, audience, message.mutable_step());
      const auto link = links_.find(stage.worker);
      if (link != links_.end()) link->second->Send(message);
    }
    steps_[replica].push_back({.id = plan_.id,
                               .sent_at = now,
                               .work = plan_.work,
                               .answered = std::vector<bool>(stages.size()),
                               .busy_seconds_max = 0,
                               .unsaved = {}});
    now = Now();
  }
}

// A stage that holds up the oldest Step for too long hangs: its worker is lost.
void Coordinator::CheckSteps(int replica, double now) {
  const std::deque<SentStep>& steps = steps_[replica];
  if (steps.empty()) return;
  // Several Steps are in flight, and a stage begins one only when it is done with those before.
  const double since = std::max({steps.front().sent_at, last_answers_[replica], membership_.LastProgress(replica)});
  if (now - since <= options_.step_timeout_seconds) return;
  const auto& answered = steps.front().answered;
  const auto stage = std::find(answered.begin(), answered.end(), false) - answered.begin();
  membership_.WorkerLost(membership_.stages(replica)[stage].worker,
                         absl::StrCat("no answer to step ", steps.front().id, " and no progress for ",
                                      options_.step_timeout_seconds, " s (step timeout)"),
                         now);
}

}  // namespace goldfinch
