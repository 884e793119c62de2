// One client of a front. For front.cc alone.
#ifndef GOLDFINCH_COORDINATOR_FRONT_CONNECTION_H_
#define GOLDFINCH_COORDINATOR_FRONT_CONNECTION_H_

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/log_limiter.h"
#include "coordinator/front/body_pool.h"
#include "coordinator/front/front_options.h"
#include "coordinator/front/h2_guard.h"
#include "coordinator/front/listener.h"

struct ssl_st;      // SSL
struct ssl_ctx_st;  // SSL_CTX

namespace goldfinch {

// Which events of a descriptor an epoll set reports. It leaves the set when none are wanted, for errors and hang-ups
// would be reported all the same, again and again.
class Watch {
 public:
  void Attach(int epoll, int fd, uint64_t key);
  void Want(uint32_t events);
  void Detach();
  int fd() const { return fd_; }

 private:
  int epoll_ = -1;
  int fd_ = -1;
  uint64_t key_ = 0;
  uint32_t events_ = 0;  // 0: it is not in the set
};

// Bytes on their way to a socket that may not take them at once.
class Outbox {
 public:
  // The source is not read while more than this waits.
  static constexpr size_t kFullBytes = 64 << 10;

  std::string* text() { return &text_; }  // to append to
  std::string_view pending() const { return std::string_view(text_).substr(begin_); }
  bool empty() const { return begin_ == text_.size(); }
  bool full() const { return text_.size() - begin_ >= kFullBytes; }
  void Sent(size_t bytes);

 private:
  std::string text_;
  size_t begin_ = 0;
};

// Belongs to one thread. Functions that return bool return false once the connection has ended and is to be destroyed.
class Connection {
 public:
  struct Setup {
    int epoll = -1;
    uint64_t id = 0;  // its events have the keys 2 * id for the client's socket and 2 * id + 1 for the other one
    int fd = -1;      // of the client; the connection closes it
    PeerAddress peer;
    const FrontLimits* limits = nullptr;
    std::shared_ptr<ssl_ctx_st> tls;  // null: plain text
    BodyPool* pool = nullptr;
    BodyPool::Owner owner;
    LogLimiter* log = nullptr;
    double read_from = 0;            // when reading begins, within a tick
    std::function<void()> on_fault;  // the client has broken the rules, for which the connection ends
    // Is given the other end of the connection.
    std::function<void(int fd, const PeerAddress& peer)> hand_on;
  };

  Connection(Setup setup, double now);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  // TLS is being set up, which takes much more time than anything else.
  bool shaking_hands() const { return phase_ == Phase::kHandshake; }
  bool handed_on() const { return phase_ == Phase::kRelaying || phase_ == Phase::kClosing; }
  const PeerAddress& peer() const { return setup_.peer; }
  // Frames of the client wait (H2Guard::resume_at): OnPace is to be called every few milliseconds.
  bool paced() const { return guard_ && guard_->resume_at() >= 0; }

  // `scratch` is memory to read into, of kReadBytes.
  static constexpr size_t kReadBytes = 32 << 10;
  bool OnClient(uint32_t events, double now, char* scratch);
  bool OnServer(uint32_t events, double now, char* scratch);
  bool Tick(double now);
  bool OnPace(double now);   // it is time for frames that wait
  bool OnRoom(double now);   // there may be room in the pool
  bool Evicted(double now);  // the connection has to go

 private:
  enum class Phase {
    kHandshake,  // TLS
    kOpening,    // until the client's settings have come
    kRelaying,
    kClosing,  // nothing is read from the server any more; the client gets what waits for it, and then the end
  };

  void Handshake();
  void ReadClient(double now, char* scratch);
  void ReadServer(char* scratch, double now);
  // Passes bytes of the client on, and returns how many the guard has consumed; an error ends the connection.
  absl::StatusOr<size_t> Pass(std::string_view bytes, double now);
  // The same for partial_, which keeps the rest.
  void FilterPartial(double now);
  void HandOn(double now);
  ssize_t ReceiveClient(char* bytes, size_t size);  // 0: the end, -1: nothing now; sets broken_ on errors
  void WriteClient();
  void WriteServer();
  // The client has broken the rules.
  void Fault(const absl::Status& reason, double now);
  void Refuse(const absl::Status& reason, double now);
  void Close(double now);
  // Writes what can be written, goes on to the next phase, and says what to wait for.
  bool EndTurn(double now);
  // Tells the guard for how long the client has not been read, because the server is full or frames of its own wait.
  void ExcuseClient(double now);
  void Log(double now, const std::string& what);

  const Setup setup_;
  const double began_at_;
  Phase phase_;
  Watch client_, server_;
  ssl_st* tls_ = nullptr;
  bool tls_wants_write_ = false;
  std::string partial_;  // the beginning of a frame of the client, or frames that wait
  std::string partial_from_server_;
  Outbox to_client_, to_server_;
  bool client_ended_ = false;  // nothing more comes from the client
  bool server_ended_ = false;
  double client_full_since_ = -1;  // since when the client has taken nothing of a full outbox; -1: it is not full
  double unread_since_ = -1;       // since when the client is not read, as above; -1: it is read
  size_t discarded_bytes_ = 0;     // in kClosing
  bool server_told_ = false;       // that the client has ended
  bool client_told_ = false;       // that the connection has ended
  bool broken_ = false;
  double close_by_ = 0;          // in kClosing
  int64_t streams_expired_ = 0;  // and refused, which have been logged
  int64_t streams_refused_ = 0;
  // Both are gone in kClosing; the guard uses the account.
  std::optional<BodyPool::Account> account_;
  std::optional<H2Guard> guard_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_FRONT_CONNECTION_H_
