#include "coordinator/front/body_pool.h"

#include <algorithm>
#include <map>
#include <utility>

#include "base/check.h"

namespace goldfinch {

BodyPool::Account::Account(BodyPool* pool, Owner owner) : pool_(pool), owner_(std::move(owner)) {
  const std::lock_guard<std::mutex> lock(pool_->mutex_);
  pool_->accounts_.insert(this);
}

BodyPool::Account::~Account() {
  const std::lock_guard<std::mutex> lock(pool_->mutex_);
  GF_CHECK_EQ(bytes_, 0) << "the connection's guard has not released its bytes";
  pool_->accounts_.erase(this);
  std::erase(pool_->waiting_, this);
  if (pool_->turn_ == this) pool_->turn_ = nullptr;
  pool_->Wake();
}

void BodyPool::Account::Take(int64_t bytes) {
  const std::lock_guard<std::mutex> lock(pool_->mutex_);
  bytes_ += bytes;
  pool_->bytes_ += bytes;
}

bool BodyPool::Account::Reserve(int64_t bytes) {
  const std::lock_guard<std::mutex> lock(pool_->mutex_);
  BodyPool& pool = *pool_;
  const bool granted = (pool.waiting_.empty() || pool.turn_ == this) && pool.MayReserve(*this, bytes);
  if (granted) {
    bytes_ += bytes;
    pool.bytes_ += bytes;
  }
  if (wanted_ > 0 && granted) std::erase(pool.waiting_, this);
  if (wanted_ == 0 && !granted) {
    pool.waiting_.push_back(this);
    waiting_since_ = 0;
  }
  wanted_ = granted ? 0 : bytes;
  if (pool.turn_ == this) {
    pool.turn_ = nullptr;
    if (granted) pool.Wake();
  }
  return granted;
}

void BodyPool::Account::Release(int64_t bytes) {
  if (bytes == 0) return;
  const std::lock_guard<std::mutex> lock(pool_->mutex_);
  bytes_ -= bytes;
  pool_->bytes_ -= bytes;
  GF_CHECK_GE(bytes_, 0);
  pool_->Wake();
}

void BodyPool::Account::Withdraw() {
  const std::lock_guard<std::mutex> lock(pool_->mutex_);
  if (wanted_ == 0) return;
  wanted_ = 0;
  std::erase(pool_->waiting_, this);
  if (pool_->turn_ == this) pool_->turn_ = nullptr;
  pool_->Wake();
}

int64_t BodyPool::bytes() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return bytes_;
}

int64_t BodyPool::BytesOf(const std::string& address) const {
  int64_t bytes = 0;
  for (const Account* account : accounts_) bytes += account->owner_.address == address ? account->bytes_ : 0;
  return bytes;
}

bool BodyPool::MayReserve(const Account& account, int64_t bytes) const {
  // A connection that holds nothing may always have one message, if there is room.
  return bytes_ + bytes <= total_bytes_max_ &&
         (account.bytes_ == 0 || account.bytes_ + bytes <= connection_bytes_max_) &&
         (bytes_ == 0 || BytesOf(account.owner_.address) + bytes <= std::max(total_bytes_max_ / 2, bytes));
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
  bool starved = bytes_ > total_bytes_max_;
  for (Account* account : waiting_) {
    if (account->waiting_since_ == 0) account->waiting_since_ = now;
    // Who waits for room of its own part has itself to wait for.
    const bool waits_for_others = bytes_ + account->wanted_ > total_bytes_max_;
    starved |= waits_for_others && now - account->waiting_since_ >= patience_seconds_;
  }
  if (starved) Evict();
  Wake();
}

void BodyPool::Evict() {
  std::map<std::string, int64_t> bytes;
  for (const Account* account : accounts_) {
    if (account->evicted_) return;  // its bytes are about to come back
    bytes[account->owner_.address] += account->bytes_;
  }
  const auto less = [](const auto& a, const auto& b) { return a.second < b.second; };
  const auto address = std::max_element(bytes.begin(), bytes.end(), less);
  Account* largest = nullptr;
  for (Account* account : accounts_) {
    if (account->owner_.address != address->first) continue;
    if (largest == nullptr || account->bytes_ > largest->bytes_) largest = account;
  }
  if (largest == nullptr || largest->bytes_ == 0) return;
  largest->evicted_ = true;
  largest->owner_.evict();
}

}  // namespace goldfinch
