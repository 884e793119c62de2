// Scheduler: the clients, their limits, and the places in the queue.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "coordinator/scheduler/scheduler.h"
#include "coordinator/scheduler/scheduler_state.h"

namespace goldfinch {

// ---- Clients ----

// Clients of one name share an account, even if they are several objects: keys may have been read again.
Scheduler::Account& Scheduler::AccountOf(const Request& request, double now) {
  const Client* const client = request.client.get();
  std::string key = client == nullptr ? "" : absl::StrCat("c", client->name);
  std::unique_ptr<Account>& found = accounts_[key];
  if (found == nullptr) {
    found = std::make_unique<Account>();
    found->id = ++last_account_;
    found->key = std::move(key);
    if (client != nullptr) found->name = client->name;
  }
  Account& account = *found;
  if (client != nullptr) {
    account.limits = client->limits;
    account.allowance.SetLimit(client->limits.tokens_per_minute, now);
  }
  if (accounts_.size() >= accounts_sweep_) {
    absl::erase_if(accounts_, [&](const auto& entry) {
      Account& one = *entry.second;
      return &one != &account && one.admitted + one.queued == 0 && one.allowance.full(now);
    });
    accounts_sweep_ = std::max<size_t>(2 * accounts_.size(), 64);
  }
  return account;
}

// An account is kept while it has requests, or has used tokens of its minute.
void Scheduler::Forget(Account& account, double now) {
  if (account.admitted + account.queued > 0 || !account.allowance.full(now)) return;
  accounts_.erase(std::string(account.key));
}

// OK unless a request that has to wait is one more than its client may have.
absl::Status Scheduler::ClientLimit(const RequestState& state, double now) const {
  Account& account = *state.account;
  const ClientLimits& limits = account.limits;
  if (limits.max_queued > 0 && account.queued > limits.max_queued) {
    return absl::ResourceExhaustedError(absl::StrCat("client ", account.name, " has ", account.queued - 1,
                                                     " requests waiting already, its limit is ", limits.max_queued));
  }
  if (!account.allowance.limited()) return absl::OkStatus();
  const double seconds = account.allowance.SecondsUntil(state.CostMax(), now) +
                         account.allowance.SecondsOf(account.queued_cost - state.CostMax());
  if (seconds <= kTokenWaitSeconds) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("client ", account.name, " has used up its ", limits.tokens_per_minute,
                   " tokens a minute, and this request may need ", state.CostMax(), " more: try again in ",
                   static_cast<int64_t>(std::ceil(seconds - kTokenWaitSeconds)), " s"));
}

// ---- Places ----

// Must be called whenever a request may have begun or ceased to wait.
void Scheduler::Requeue(RequestState& state) {
  Account& account = *state.account;
  const bool has_place = state.live > 0 && state.slots == 0;
  if (has_place != state.has_place) {
    const int change = has_place ? 1 : -1;
    state.has_place = has_place;
    places_ += change;
    account.places += change;
    place_bytes_ += change * state.bytes;
    account.place_bytes += change * state.bytes;
  }
  const bool wants_slot = !state.paused && state.slots < state.live;
  if (wants_slot == state.wants_slot) {
    // It has been admitted for the first time while more of its sequences wait.
    if (wants_slot && state.admitted >= 0 && !state.counted_parked) {
      state.counted_parked = true;
      ++account.parked;
    }
    return;
  }
  state.wants_slot = wants_slot;
  if (wants_slot) {
    account.waiting.emplace(state.queue_key(), &state);
    if (state.is_short) account.waiting_short.emplace(state.queue_key(), &state);
    waiting_.emplace(account.id, &account);
    state.counted_parked = state.admitted >= 0;
    account.parked += state.counted_parked ? 1 : 0;
    changed_ = true;
    return;
  }
  account.waiting.erase(state.queue_key());
  account.waiting_short.erase(state.queue_key());
  account.parked -= state.counted_parked ? 1 : 0;
  state.counted_parked = false;
  state.blocked_since = -1;
  if (account.waiting.empty()) waiting_.erase(account.id);
}

bool Scheduler::QueueOverflows() const { return places_ > queue_.requests || place_bytes_ > queue_.bytes; }

absl::Status Scheduler::QueueFull() const {
  return absl::ResourceExhaustedError(absl::StrCat("the queue is full: with this one, ", places_, " requests of ",
                                                   place_bytes_, " bytes would wait; the limits are ", queue_.requests,
                                                   " requests (max_queue) and ", queue_.bytes,
                                                   " bytes (max_queue_bytes)"));
}

// The request of this client that loses its place to `newest`: the one that would be served last of those that have
// never run, or else the last one that was parked because its client does not read. Null: none. A request of a higher
// priority keeps its place.
Scheduler::RequestState* Scheduler::Evictable(const Account& account, const RequestState& newest) const {
  RequestState* paused = nullptr;
  RequestState* last = nullptr;
  for (auto it = account.waiting.rbegin(); it != account.waiting.rend() && last == nullptr; ++it) {
    if (it->second->admitted < 0) last = it->second;
  }
  if (last == nullptr) {
    for (const auto& [number, state] : requests_) {
      if (state->account != &account || !state->has_place || !state->paused) continue;
      if (paused == nullptr || paused->queue_key() < state->queue_key()) paused = state.get();
    }
    last = paused;
  }
  return last != nullptr && last->request.priority <= newest.request.priority ? last : nullptr;
}

// Whether `newest`, which waits already, may stay. Ends requests of clients that have more of the queue than its own.
bool Scheduler::MakePlace(const RequestState& newest, double now) {
  Account& own = *newest.account;
  int64_t bytes_won = 0;
  bool place_won = false;
  while (QueueOverflows()) {
    // Places that were taken by force, after a loss of workers, may exceed the limits: it is enough to replace one's
    // own.
    const bool by_number = places_ > queue_.requests && !place_won;
    const bool by_bytes = place_bytes_ > queue_.bytes && bytes_won < newest.bytes;
    if (!by_number && !by_bytes) return true;
    const auto size = [&](const Account& account) {
      return by_number ? static_cast<int64_t>(account.places) : account.place_bytes;
    };
    std::vector<Account*> larger;
    for (const auto& [name, account] : accounts_) {
      if (size(*account) > size(own)) larger.push_back(account.get());
    }
    std::sort(larger.begin(), larger.end(), [&](const Account* a, const Account* b) {
      return std::make_pair(size(*a), a->id) > std::make_pair(size(*b), b->id);
    });
    RequestState* loser = nullptr;
    for (auto it = larger.begin(); it != larger.end() && loser == nullptr; ++it) loser = Evictable(**it, newest);
    if (loser == nullptr) return false;
    bytes_won += loser->bytes;
    place_won = true;
    End(*loser,
        absl::ResourceExhaustedError(
            absl::StrCat(std::string(QueueFull().message()), "; client ", loser->account->name, " has the most of it")),
        now);
  }
  return true;
}

}  // namespace goldfinch
