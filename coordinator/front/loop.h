// A thread of a front, with the connections that it serves. For front.cc alone.
#ifndef GOLDFINCH_COORDINATOR_FRONT_LOOP_H_
#define GOLDFINCH_COORDINATOR_FRONT_LOOP_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "base/log_limiter.h"
#include "coordinator/front/admission.h"
#include "coordinator/front/body_pool.h"
#include "coordinator/front/connection.h"
#include "coordinator/front/front.h"
#include "coordinator/front/tls.h"

namespace goldfinch {

// What the threads of a front have in common.
struct FrontShared {
  static constexpr double kLinesASecond = 1, kLinesAtOnce = 10;  // of the log, of each kind

  FrontShared(FrontOptions front_options, Front::OnConnection callback, int connections_max)
      : options(std::move(front_options)),
        on_connection(std::move(callback)),
        admission(connections_max, options.limits.connections_per_address_max),
        pool(options.limits) {}

  const FrontOptions options;
  const Front::OnConnection on_connection;
  std::unique_ptr<ServerTls> tls;  // null: plain text
  Admission admission;
  BodyPool pool;
  LogLimiter refusals{kLinesASecond, kLinesAtOnce};  // of connections that were not taken
  LogLimiter faults{kLinesASecond, kLinesAtOnce};    // of connections that were taken
  LogLimiter holds{kLinesASecond, kLinesAtOnce};     // of connections that are not read at once
};

// Other threads call Post, Add and End; everything else happens on the loop's thread.
class FrontLoop {
 public:
  explicit FrontLoop(FrontShared* shared);
  ~FrontLoop();  // calls End(0) and waits for the thread
  FrontLoop(const FrontLoop&) = delete;
  FrontLoop& operator=(const FrontLoop&) = delete;

  // Takes connections from now on, and gives them to the loops in turn. One loop of a front does that.
  void Accept(std::vector<Listener> listeners, std::vector<FrontLoop*> loops);
  // Returns when the listening sockets are closed, and so are the connections that have not been handed on.
  void StopAccepting();
  // The thread ends when its last connection does, or after `seconds`.
  void End(double seconds);
  void Join();

 private:
  void Post(std::function<void()> task);
  void Add(int fd, const PeerAddress& peer);

  void Run();
  void RunTasks();
  void RunEvent(uint64_t key, uint32_t events, int* handshakes);
  // Calls a function of the connection; a connection that has ended is destroyed.
  template <typename Call>
  void With(uint64_t id, Call call);
  void Tick();
  void RunPaced();
  int TimeoutMs() const;

  // Takes a bounded number of connections.
  void AcceptSome(const Listener& listener);
  // Takes one connection with the reserved descriptor and closes it, so that its client hears of it.
  void TurnAway(const Listener& listener, int error);
  void PauseAccepting(bool paused);
  void Place(int fd, const PeerAddress& peer);

  FrontShared* const shared_;
  const int epoll_;
  const int wake_;  // an eventfd

  std::mutex mutex_;
  std::vector<std::function<void()>> tasks_;  // guarded by mutex_

  // The loop's thread alone uses these.
  std::vector<char> scratch_;
  absl::flat_hash_map<uint64_t, std::unique_ptr<Connection>> connections_;
  absl::flat_hash_set<uint64_t> paced_;  // ids of connections that were paced when they were last called
  std::vector<uint64_t> pacing_;         // RunPaced's, kept for its memory
  double pace_at_ = 0;                   // when they are looked at next
  uint64_t id_next_ = 1;
  double now_ = 0;
  double tick_at_ = 0;
  double end_by_ = -1;  // -1: not yet
  std::vector<Listener> listeners_;
  std::vector<FrontLoop*> loops_;  // that get the connections
  size_t loop_next_ = 0;
  int reserve_ = -1;          // a descriptor, for when there are no others
  double paused_until_ = -1;  // accepting; -1: it is not paused
  double tls_poll_at_ = 0;

  std::thread thread_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_FRONT_LOOP_H_
