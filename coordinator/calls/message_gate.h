// Decides whose messages may be in memory. A call passes the gate before its message is read from the network, and
// leaves it when the message has been freed, so that many large messages, or slow ones, wait outside, where flow
// control keeps them with their senders.
#ifndef GOLDFINCH_COORDINATOR_CALLS_MESSAGE_GATE_H_
#define GOLDFINCH_COORDINATOR_CALLS_MESSAGE_GATE_H_

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "coordinator/scheduler/client.h"

namespace goldfinch {

// Clients take turns. A client that holds many places or waits in many calls can neither keep others out nor make their
// calls end: where somebody must go, it is a call of the client that has the most. A place counts until its holder has
// left, also after it has been told to go, so there are never more messages in memory than places. Time counts only
// while it is the client that is waited for.
//
// Thread-safe. `now` is in seconds of a clock that never goes back.
class MessageGate {
 public:
  struct Limits {
    int places = 64;               // messages in memory
    int places_of_client = 8;      // those of one client
    int waiting = 4096;            // calls that wait for a place
    double seconds = 60;           // that a call may wait, and that its message may take to come
    double contested_seconds = 5;  // that a client with more places than others may keep one that another one needs
    double leave_seconds = 5;      // that a guest may take to leave when it has been told to
  };

  // A call. Its functions are called without any lock, at most once each, and must return at once.
  class Guest {
   public:
    virtual ~Guest() = default;
    // It has a place now.
    virtual void Admit() = 0;
    // It has to leave, or will not get a place; RESOURCE_EXHAUSTED says why. Leave must follow if it has been admitted.
    virtual void Dismiss(const absl::Status& status) = 0;
    // It has been told to leave and is still here: whatever keeps it must be broken off.
    virtual void Evict() = 0;
  };

  explicit MessageGate(const Limits& limits) : limits_(limits) {}

  // Calls Admit or Dismiss at once, or later. `client` may be null.
  void Enter(std::shared_ptr<Guest> guest, std::shared_ptr<const Client> client, double now);
  // The message of a guest that has been admitted is here, and the server works on it: no time counts until Prolong.
  void Pause(const Guest* guest);
  // Gives a guest that has been admitted `seconds` from now on.
  void Prolong(const Guest* guest, double seconds, double now);
  // The guest's message has been freed, or it does not wait any more. Does nothing if it is not here.
  void Leave(const Guest* guest, double now);
  // Dismisses those whose time is over, and evicts those that do not leave. Call it every second or so.
  void Sweep(double now);

  int inside() const;
  int waiting() const;

 private:
  struct Entry {
    std::shared_ptr<Guest> guest;
    const Client* client = nullptr;
    bool inside = false;
    bool leaving = false;  // it is inside, and has been dismissed
    double since = 0;
    double until = 0;
  };
  struct Share {
    std::shared_ptr<const Client> client;
    int inside = 0;
    int leaving = 0;                   // of those inside
    std::deque<const Guest*> waiting;  // the first one came first
  };
  // What is done once the lock has been given up.
  struct Actions {
    std::vector<std::shared_ptr<Guest>> admit;
    std::vector<std::pair<std::shared_ptr<Guest>, absl::Status>> dismiss;
    std::vector<std::shared_ptr<Guest>> evict;
    void Run();
  };

  // All of these with mutex_ held.
  void Remove(const Guest* guest);
  void DismissInside(Entry* entry, absl::string_view reason, double now, Actions* actions);
  void AdmitWaiting(double now, Actions* actions);
  void MakeRoomToWait(Actions* actions);
  void SettleContest(double now, Actions* actions);

  const Limits limits_;
  mutable std::mutex mutex_;
  // Guarded by mutex_.
  std::unordered_map<const Guest*, Entry> entries_;
  std::map<const Client*, Share> shares_;  // of clients with an entry
  std::deque<const Client*> turns_;        // clients that wait, the next one first
  int inside_ = 0;
  int leaving_ = 0;  // of those inside
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_CALLS_MESSAGE_GATE_H_
