// Coordinator: what is kept of texts, on shelves and in the store.
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "coordinator/coordinator.h"
#include "coordinator/scheduler/dispatcher.h"
#include "coordinator/shelves/shelf_group.h"
#include "protos/generate.pb.h"
#include "spdlog/spdlog.h"

namespace goldfinch {

// Groups wait until what the store has is known, so that the first request finds it.
void Coordinator::OpenStore() {
  if (options_.store == nullptr) return;
  StoreEvents events;
  events.moved = [this](uint64_t move, const SegmentKey& key, StoreMoved moved) {
    Post([this, move, key, moved = std::move(moved)](double now) mutable {
      moved.stored = store_threads_->Stored(key);  // as it is by now
      keeper_.Moved(move, moved, now);
    });
  };
  events.name_put = [this](const ContextName& asked, absl::StatusOr<ContextName> kept) {
    Post([this, asked, kept = std::move(kept)](double now) { keeper_.NamePut(asked, kept, now); });
  };
  store_threads_ = std::make_unique<StoreThreads>(options_.store, &mover_, std::move(events));
  store_threads_->Load([this](StoreContents contents) {
    Post([this, contents = std::move(contents)](double now) mutable { HandleStoreRead(std::move(contents), now); });
  });
}

void Coordinator::HandleStoreRead(StoreContents contents, double now) {
  spdlog::info("contexts: {} segments and {} names are in the store", contents.segments.size(), contents.names.size());
  store_contents_ = std::move(contents);
  for (const int replica : std::exchange(waiting_groups_, {})) HandleGenerationReady(replica, now);
}

// The first group says what contexts are kept of: others that compute otherwise, or not all alike, keep nothing.
void Coordinator::KeepTexts(int replica, double token_seconds, double now) {
  std::optional<ShelfGroup> shelves = membership_.Shelves(replica);
  if (!shelves) return keeper_.GenerationReady(replica, {});
  const ContextIdentity& identity = shelves->model.identity;
  const bool of_one_kind = !identity.numerics.empty() && !absl::StrContains(identity.numerics, '+');
  if (!of_one_kind || (!numerics_.empty() && identity.numerics != numerics_)) {
    spdlog::info("replica {} keeps nothing of texts: its workers compute with \"{}\"{}", replica, identity.numerics,
                 numerics_.empty() ? "" : ", and those of others with " + numerics_);
    return keeper_.GenerationReady(replica, {});
  }
  const ShelfCapacity capacity = membership_.Shelf(replica);
  if (numerics_.empty()) {
    numerics_ = identity.numerics;
    context_model_ = shelves->model;
    keeper_.SetModel(identity, keeper_.text_bytes());
    TellContextFormat(shelves->model);
    if (store_threads_ != nullptr) {
      keeper_.SetStore(options_.store_tier, *std::move(store_contents_), capacity, token_seconds, now);
      store_contents_.reset();
    }
  }
  keeper_.GenerationReady(replica, capacity);
  mover_.SetGroup(replica, *std::move(shelves));
}

// Who asks for the model hears of it from now on.
void Coordinator::TellContextFormat(const ContextModel& contexts) {
  const std::shared_ptr<const ServedModel> before = model();
  auto info = std::make_shared<v1::GetModelInfoResponse>(*before->info);
  v1::ContextFormat& format = *info->mutable_contexts();
  format.set_format_version(static_cast<uint32_t>(contexts.identity.format_version));
  format.set_vocabulary(contexts.identity.vocabulary);
  format.set_numerics(contexts.identity.numerics);
  for (const ContextPart& part : contexts.parts) {
    v1::ContextPart& to = *format.add_parts();
    to.set_layer(static_cast<uint32_t>(part.layer));
    to.set_kind(KindName(part.kind));
    to.set_type(Name(part.type));
    for (const int64_t axis : part.shape) to.add_shape(static_cast<uint64_t>(axis));
  }
  auto told = std::make_shared<ServedModel>(*before);
  told->info = std::move(info);
  const std::lock_guard<std::mutex> lock(mutex_);
  model_ = std::move(told);
}

void Coordinator::MoveContexts(double now) {
  if (keeper_.store() == nullptr) return;
  for (const uint64_t request : keeper_.TakePrepared(now)) scheduler_.Prepared(request, now);
  std::vector<StoreAction>& actions = keeper_.TakeStoreActions(now);
  // All Steps that were planned have been sent.
  for (int replica = 0; replica < options_.membership.replicas; ++replica) {
    SendDrops(members_[replica], keeper_.TakeDrops(replica));
  }
  for (StoreAction& action : actions) store_threads_->Do(std::move(action));
}

}  // namespace goldfinch
