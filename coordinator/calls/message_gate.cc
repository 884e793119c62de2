#include "coordinator/calls/message_gate.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"

namespace goldfinch {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

}  // namespace

void MessageGate::Actions::Run() {
  for (const auto& [guest, status] : dismiss) guest->Dismiss(status);
  for (const std::shared_ptr<Guest>& guest : evict) guest->Evict();
  for (const std::shared_ptr<Guest>& guest : admit) guest->Admit();
}

void MessageGate::Enter(std::shared_ptr<Guest> guest, std::shared_ptr<const Client> client, double now) {
  Actions actions;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Guest* key = guest.get();
    Share& share = shares_[client.get()];
    if (share.waiting.empty()) turns_.push_back(client.get());
    share.waiting.push_back(key);
    entries_[key] = {.guest = std::move(guest), .client = client.get(), .since = now, .until = now + limits_.seconds};
    share.client = std::move(client);
    AdmitWaiting(now, &actions);
    if (static_cast<int>(entries_.size()) - inside_ > limits_.waiting) MakeRoomToWait(&actions);
  }
  actions.Run();
}

void MessageGate::Pause(const Guest* guest) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto entry = entries_.find(guest);
  if (entry == entries_.end()) return;
  entry->second.since = entry->second.until = kNever;
}

void MessageGate::Prolong(const Guest* guest, double seconds, double now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto entry = entries_.find(guest);
  if (entry == entries_.end()) return;
  entry->second.since = now;
  entry->second.until = now + seconds;
}

void MessageGate::Leave(const Guest* guest, double now) {
  Actions actions;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    Remove(guest);
    AdmitWaiting(now, &actions);
  }
  actions.Run();
}

void MessageGate::Remove(const Guest* guest) {
  const auto entry = entries_.find(guest);
  if (entry == entries_.end()) return;
  const Client* client = entry->second.client;
  Share& share = shares_[client];
  if (entry->second.inside) {
    --share.inside;
    --inside_;
    share.leaving -= static_cast<int>(entry->second.leaving);
    leaving_ -= static_cast<int>(entry->second.leaving);
  } else {
    share.waiting.erase(std::find(share.waiting.begin(), share.waiting.end(), guest));
    if (share.waiting.empty()) turns_.erase(std::find(turns_.begin(), turns_.end(), client));
  }
  entries_.erase(entry);
  if (share.inside == 0 && share.waiting.empty()) shares_.erase(client);
}

void MessageGate::DismissInside(Entry* entry, absl::string_view reason, double now, Actions* actions) {
  actions->dismiss.emplace_back(entry->guest, absl::ResourceExhaustedError(reason));
  entry->leaving = true;
  entry->until = now + limits_.leave_seconds;
  ++shares_[entry->client].leaving;
  ++leaving_;
}

void MessageGate::AdmitWaiting(double now, Actions* actions) {
  while (inside_ < limits_.places && !turns_.empty()) {
    // The one with the fewest places; of several, the one whose last turn was longest ago.
    const auto next = std::min_element(turns_.begin(), turns_.end(), [this](const Client* a, const Client* b) {
      return shares_[a].inside < shares_[b].inside;
    });
    const Client* client = *next;
    Share& share = shares_[client];
    if (share.inside >= limits_.places_of_client) return;
    turns_.erase(next);
    Entry& entry = entries_[share.waiting.front()];
    share.waiting.pop_front();
    if (!share.waiting.empty()) turns_.push_back(client);
    ++share.inside;
    ++inside_;
    entry.inside = true;
    entry.since = now;
    entry.until = now + limits_.seconds;
    actions->admit.push_back(entry.guest);
  }
}

void MessageGate::MakeRoomToWait(Actions* actions) {
  const auto most = std::max_element(shares_.begin(), shares_.end(), [](const auto& a, const auto& b) {
    return a.second.waiting.size() < b.second.waiting.size();
  });
  const Guest* newest = most->second.waiting.back();
  actions->dismiss.emplace_back(entries_[newest].guest, absl::ResourceExhaustedError(absl::StrCat(
                                                            limits_.waiting, " calls wait to send their messages, ",
                                                            most->second.waiting.size(), " of them from this client")));
  Remove(newest);
}

void MessageGate::Sweep(double now) {
  Actions actions;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<const Guest*> waited;
    for (auto& [guest, entry] : entries_) {
      if (entry.until > now) continue;
      if (!entry.inside) {
        actions.dismiss.emplace_back(
            entry.guest, absl::ResourceExhaustedError(
                             absl::StrCat("other messages have been arriving for ", limits_.seconds, " s")));
        waited.push_back(guest);
      } else if (entry.leaving) {
        actions.evict.push_back(entry.guest);
        entry.until = kNever;
      } else {
        DismissInside(&entry,
                      absl::StrCat("the client is too slow: its message has not arrived, or was not taken, in ",
                                   static_cast<int64_t>(now - entry.since), " s"),
                      now, &actions);
      }
    }
    for (const Guest* guest : waited) Remove(guest);
    AdmitWaiting(now, &actions);
    SettleContest(now, &actions);
  }
  actions.Run();
}

// While all places are taken, the oldest one of the client with the most of them goes to a client that has fewer: one
// for each client that waits, with those that are about to come free.
void MessageGate::SettleContest(double now, Actions* actions) {
  const auto staying = [](const Share& share) { return share.inside - share.leaving; };
  while (inside_ >= limits_.places && leaving_ < static_cast<int>(turns_.size())) {
    const auto most = std::max_element(shares_.begin(), shares_.end(), [&](const auto& a, const auto& b) {
      return staying(a.second) < staying(b.second);
    });
    int fewest = limits_.places;
    for (const Client* client : turns_) fewest = std::min(fewest, shares_[client].inside);
    if (staying(most->second) <= fewest + 1) return;
    Entry* oldest = nullptr;
    for (auto& [guest, entry] : entries_) {
      if (entry.client != most->first || !entry.inside || entry.leaving) continue;
      if (oldest == nullptr || entry.since < oldest->since) oldest = &entry;
    }
    if (now - oldest->since < limits_.contested_seconds) return;
    DismissInside(oldest,
                  absl::StrCat("the client is too slow, and has ", staying(most->second),
                               " messages under way while others wait: send them faster, or fewer at a time"),
                  now, actions);
  }
}

int MessageGate::inside() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return inside_;
}

int MessageGate::waiting() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return static_cast<int>(entries_.size()) - inside_;
}

}  // namespace goldfinch
