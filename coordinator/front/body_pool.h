// The open calls, and the bytes of those that are not complete, over all connections of a front.
#ifndef GOLDFINCH_COORDINATOR_FRONT_BODY_POOL_H_
#define GOLDFINCH_COORDINATOR_FRONT_BODY_POOL_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "coordinator/front/h2_guard.h"

namespace goldfinch {

// Grants room to connections in the order in which they ask, one message of each in turn, so that nobody waits behind
// all messages of another. A connection may reserve `connection_bytes_max`, an address half of the pool. A call gets
// its place at once or never. Thread-safe; one account is used by one thread at a time.
class BodyPool {
  struct Share;
  using Shares = std::map<std::string, Share>;  // by address

 public:
  // A loop's part of a connection. Both functions are called on any thread, with the pool locked: they may only leave a
  // note.
  struct Owner {
    std::string address;            // clients of one address share its part of the pool
    std::function<void()> on_room;  // H2Guard::Retry may succeed now
    std::function<void()> evict;    // the connection has to go, because it holds the most and others wait
    bool loopback = false;          // the address may have any number of calls
  };

  class Account final : public CallBudget {
   public:
    Account(BodyPool* pool, Owner owner);
    ~Account() override;
    Account(const Account&) = delete;
    Account& operator=(const Account&) = delete;

    absl::Status OpenCall() override;
    void CloseCall() override;
    void Take(int64_t bytes) override;
    bool Reserve(int64_t bytes) override;
    void Release(int64_t bytes) override;
    void Withdraw() override;

   private:
    friend class BodyPool;

    void Add(int64_t bytes);  // with the pool locked

    BodyPool* const pool_;
    const Owner owner_;
    // Guarded by the pool's mutex.
    Shares::value_type* share_;  // of its address
    int calls_ = 0;
    int64_t bytes_ = 0;
    int64_t wanted_ = 0;        // by the message that waits; 0: none does
    double waiting_since_ = 0;  // set by the pool's next Tick; 0: not yet
    bool evicted_ = false;
  };

  explicit BodyPool(const FrontLimits& limits) : limits_(limits) {}

  // To be called every second or so: evicts the largest connection of the address that holds the most, if another
  // connection has waited too long, or if bytes that nobody reserved have filled the pool.
  void Tick(double now);

  int64_t bytes() const;

 private:
  // What the connections of one address hold together.
  struct Share {
    int calls = 0;
    int64_t bytes = 0;
    std::set<Account*> accounts;
  };

  // All are called with mutex_ held.
  bool MayReserve(const Account& account, int64_t bytes) const;
  void StopWaiting(Account* account);
  void Wake();
  void Evict();

  const FrontLimits limits_;

  mutable std::mutex mutex_;
  // Guarded by mutex_.
  int calls_ = 0;
  int64_t bytes_ = 0;
  Shares shares_;
  std::deque<Account*> waiting_;
  Account* turn_ = nullptr;  // of waiting_, which has been told of room
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_FRONT_BODY_POOL_H_
