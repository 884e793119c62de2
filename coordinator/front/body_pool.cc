#include "coordinator/front/body_pool.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace goldfinch {

BodyPool::Account::Account(BodyPool* pool, Owner owner) : pool_(pool), owner_(std::move(owner)) {
  const std::lock_guard<std::mutex> lock(pool_->mutex_);
  share_ = &*pool_->shares_.try_emplace(owner_.address).first;
  share_->second.accounts.insert(this);
}

BodyPool::Account::~Account() {
  const std::lock_guard<std::mutex> lock(pool_->mutex_);
  GF_CHECK(bytes_ == 0 && calls_ == 0) << "the connection's guard has not released its bytes and calls";
  share_->second.accounts.erase(this);
  if (share_->second.accounts.empty()) pool_->shares_.erase(share_->first);
  pool_->StopWaiting(this);
}

void BodyPool::Account::Add(int64_t bytes) {
  bytes_ += bytes;
  share_->second.bytes += bytes;
  pool_->bytes_ += bytes;
}

absl::Status BodyPool::Account::OpenCall() {
  const std::lock_guard<std::mutex> lock(pool_->mutex_);
  const int left = pool_->limits_.calls_max - pool_->calls_;
  if (left <= 0) {
    return absl::ResourceExhaustedError(absl::StrCat("there are ", pool_->calls_, " open calls, which is the limit"));
  }
  int& calls_of_address = share_->second.calls;
  const int most = std::min(pool_->limits_.calls_per_address_max, left);
  if (!owner_.loopback && calls_of_address >= most) {
    return absl::ResourceExhaustedError(
        absl::StrCat("there are ", calls_of_address, " open calls from this address, the limit is ", most));
  }
  ++calls_;
  ++calls_of_address;
  ++pool_->calls_;
  return absl::OkStatus();
}

void BodyPool::Account::CloseCall() {
  const std::lock_guard<std::mutex> lock(pool_->mutex_);
  GF_CHECK_GT(calls_, 0);
  --calls_;
  --share_->second.calls;
  --pool_->calls_;
}

void BodyPool::Account::Take(int64_t bytes) {
  const std::lock_guard<std::mutex> lock(pool_->mutex_);
  Add(bytes);
}

bool BodyPool::Account::Reserve(int64_t bytes) {
  const std::lock_guard<std::mutex> lock(pool_->mutex_);
  BodyPool& pool = *pool_;
  const bool had_turn = pool.turn_ == this;
  const bool granted = (pool.waiting_.empty() || had_turn) && pool.MayReserve(*this, bytes);
  if (granted) Add(bytes);
  if (wanted_ > 0 && granted) std::erase(pool.waiting_, this);
  if (wanted_ == 0 && !granted) {
    pool.waiting_.push_back(this);
    waiting_since_ = 0;
  }
  wanted_ = granted ? 0 : bytes;
  if (had_turn) pool.turn_ = nullptr;
  // Whoever waits for room of its own part holds nobody up.
  const auto lacks_room = [&](const Account* one) { return pool.bytes_ + one->wanted_ > pool.limits_.total_bytes_max; };
  if (had_turn || std::none_of(pool.waiting_.begin(), pool.waiting_.end(), lacks_room)) pool.Wake();
  return granted;
}

void BodyPool::Account::Release(int64_t bytes) {
  if (bytes == 0) return;
  const std::lock_guard<std::mutex> lock(pool_->mutex_);
  Add(-bytes);
  GF_CHECK_GE(bytes_, 0);
  pool_->Wake();
}

void BodyPool::Account::Withdraw() {
  const std::lock_guard<std::mutex> lock(pool_->mutex_);
  if (wanted_ == 0) return;
  wanted_ = 0;
  pool_->StopWaiting(this);
}

int64_t BodyPool::bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return bytes_;
}

void BodyPool::StopWaiting(Account* account) {
  std::erase(waiting_, account);
  if (turn_ == account) turn_ = nullptr;
  Wake();
}

bool BodyPool::MayReserve(const Account& account, int64_t bytes) const {
  // A connection that holds nothing may always have one message, if there is room.
  return bytes_ + bytes <= limits_.total_bytes_max &&
         (account.bytes_ == 0 || account.bytes_ + bytes <= limits_.connection_bytes_max) &&
         (bytes_ == 0 || account.share_->second.bytes + bytes <= std::max(limits_.total_bytes_max / 2, bytes));
}

void BodyPool::Wake() {
  if (turn_ != nullptr) return;
  for (Account* account : waiting_) {
    if (!MayReserve(*account, account->wanted_)) continue;
    turn_ = account;
    account->owner_.on_room();
    return;
  }
}

void BodyPool::Tick(double now) {
  const std::lock_guard<std::mutex> lock(mutex_);
  bool starved = bytes_ > limits_.total_bytes_max;
  for (Account* account : waiting_) {
    if (account->waiting_since_ == 0) account->waiting_since_ = now;
    // Who waits for room of its own part has itself to wait for.
    const bool waits_for_others = bytes_ + account->wanted_ > limits_.total_bytes_max;
    starved |= waits_for_others && now - account->waiting_since_ >= limits_.patience_seconds;
  }
  if (starved) Evict();
  Wake();
}

void BodyPool::Evict() {
  const Share* most = nullptr;
  for (const auto& [address, share] : shares_) {
    for (const Account* account : share.accounts) {
      if (account->evicted_) return;  // its bytes are about to come back
    }
    if (most == nullptr || share.bytes > most->bytes) most = &share;
  }
  if (most == nullptr || most->bytes == 0) return;
  const auto less = [](const Account* a, const Account* b) { return a->bytes_ < b->bytes_; };
  Account* const largest = *std::max_element(most->accounts.begin(), most->accounts.end(), less);
  largest->evicted_ = true;
  largest->owner_.evict();
}

}  // namespace goldfinch
