#include "coordinator/front/connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/check.h"
#include "openssl/bio.h"
#include "openssl/err.h"
#include "openssl/ssl.h"
#include "spdlog/spdlog.h"

namespace goldfinch {
namespace {

// A client has so long to take the last bytes and to close its end. Closing a socket with unread bytes would reset the
// connection, and the client would not get those last bytes.
constexpr double kCloseSeconds = 1;
// What is read for that. A client that goes on sending does not listen.
constexpr size_t kDiscardedBytesMax = size_t{4} << 20;
constexpr double kLastBytesSeconds = 10;
constexpr double kStalledSeconds = 60;  // a client that takes nothing of what waits for it for so long is gone
constexpr size_t kToClientBytesMax = size_t{2} << 20;
constexpr size_t kBufferKeptBytes = 16 << 10;

std::string TlsError() {
  const unsigned long error = ERR_peek_last_error();  // NOLINT(google-runtime-int): OpenSSL's type
  const char* text = error != 0 ? ERR_reason_error_string(error) : nullptr;
  return text != nullptr ? text : "the client closed the connection";
}

}  // namespace

void Watch::Attach(int epoll, int fd, uint64_t key) {
  epoll_ = epoll;
  fd_ = fd;
  key_ = key;
  events_ = 0;
}

void Watch::Want(uint32_t events) {
  if (fd_ < 0 || events == events_) return;
  epoll_event event{};
  event.events = events;
  event.data.u64 = key_;
  const int action = events == 0 ? EPOLL_CTL_DEL : events_ == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
  // Adding may fail for lack of memory; it is tried again at the next turn or tick.
  if (epoll_ctl(epoll_, action, fd_, &event) == 0) events_ = events;
}

void Watch::Detach() {
  if (fd_ < 0) return;
  close(fd_);  // which takes it out of the set, for nobody else has this descriptor
  fd_ = -1;
  events_ = 0;
}

void Outbox::Sent(size_t bytes) {
  begin_ += bytes;
  if (begin_ == text_.size()) {
    text_.clear();
    begin_ = 0;
    if (text_.capacity() > kBufferKeptBytes) text_.shrink_to_fit();
  } else if (begin_ >= kFullBytes) {
    text_.erase(0, begin_);
    begin_ = 0;
  }
}

Connection::Connection(Setup setup, double now)
    : setup_(std::move(setup)),
      began_at_(std::max(now, setup_.read_from)),
      phase_(setup_.tls != nullptr ? Phase::kHandshake : Phase::kOpening),
      account_(std::in_place, setup_.pool, setup_.owner),
      guard_(std::in_place, *setup_.limits, &*account_, now) {
  client_.Attach(setup_.epoll, setup_.fd, 2 * setup_.id);
  const int yes = 1;
  setsockopt(setup_.fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
  if (setup_.tls != nullptr) {
    tls_ = SSL_new(setup_.tls.get());
    if (tls_ == nullptr || SSL_set_fd(tls_, setup_.fd) != 1) {
      broken_ = true;
    } else {
      SSL_set_accept_state(tls_);
      SSL_set_mode(tls_,
                   SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
      // Otherwise one call could read records without data for as long as they come.
      SSL_clear_mode(tls_, SSL_MODE_AUTO_RETRY);
    }
  }
  client_.Want(now >= setup_.read_from ? EPOLLIN : EPOLLRDHUP);
}

Connection::~Connection() {
  SSL_free(tls_);
  client_.Detach();
  server_.Detach();
}

void Connection::Log(double now, const std::string& what) {
  if (const std::optional<std::string> more = setup_.log->Take(now)) {
    spdlog::warn("client {}: {}{}", setup_.peer.Text(), what, *more);
  }
}

// ---- Events ----

bool Connection::OnClient(uint32_t events, double now, char* scratch) {
  // A client that has to wait and gives up leaves nothing to read: what it has sent would only cost.
  if ((events & (EPOLLERR | EPOLLHUP | EPOLLRDHUP)) != 0) return false;
  tls_wants_write_ = false;
  if (phase_ == Phase::kHandshake) {
    Handshake();
    if (broken_) {
      Log(now, absl::StrCat("the TLS handshake failed: ", TlsError()));
      // Who sends nothing, as probes of load balancers do, has cost nothing.
      if (BIO_number_read(SSL_get_rbio(tls_)) > 0) setup_.on_fault();
    }
  }
  if (phase_ != Phase::kHandshake && (events & EPOLLIN) != 0) ReadClient(now, scratch);
  return EndTurn(now);
}

bool Connection::OnServer(uint32_t events, double now, char* scratch) {
  if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) ReadServer(scratch, now);
  return EndTurn(now);
}

bool Connection::Tick(double now) {
  switch (phase_) {
    case Phase::kHandshake:
    case Phase::kOpening:
      if (now - began_at_ <= setup_.limits->handshake_seconds) return EndTurn(now);
      Log(now, absl::StrCat("it has not finished its handshake in ", setup_.limits->handshake_seconds, " s"));
      return false;
    case Phase::kRelaying: {
      if (!to_client_.full()) {
        client_full_since_ = -1;
      } else if (client_full_since_ < 0) {
        client_full_since_ = now;
      } else if (now - client_full_since_ > kStalledSeconds) {
        Log(now, absl::StrCat("it has read nothing for ", kStalledSeconds, " s"));
        return false;
      }
      ExcuseClient(now);
      if (const absl::Status status = guard_->Tick(now, to_server_.text(), to_client_.text()); !status.ok()) {
        Fault(status, now);
        break;
      }
      const int64_t expired = guard_->streams_expired();
      if (expired > streams_expired_) {
        Log(now, absl::StrCat(expired - streams_expired_, " requests were reset, because less than ",
                              setup_.limits->body_progress_bytes, " bytes of their messages came in ",
                              setup_.limits->body_seconds, " s"));
        streams_expired_ = expired;
      }
      const int64_t refused = guard_->streams_refused();
      if (refused > streams_refused_) {
        Log(now, absl::StrCat(refused - streams_refused_, " calls were refused, because too many are open (at most ",
                              setup_.limits->calls_per_address_max, " of one address and ", setup_.limits->calls_max,
                              " in all)"));
        streams_refused_ = refused;
      }
      break;
    }
    case Phase::kClosing:
      if (now >= close_by_) return false;
      break;
  }
  return EndTurn(now);
}

bool Connection::OnPace(double now) {
  if (!paced() || now < guard_->resume_at()) return true;
  ExcuseClient(now);
  FilterPartial(now);
  return EndTurn(now);
}

bool Connection::OnRoom(double now) {
  if (!guard_) return true;
  guard_->Retry(now, to_client_.text());
  return EndTurn(now);
}

bool Connection::Evicted(double now) {
  if (!guard_) return true;
  Refuse(
      absl::ResourceExhaustedError("closed to free memory: this address holds the most bytes of unfinished requests"),
      now);
  return EndTurn(now);
}

void Connection::ExcuseClient(double now) {
  if (unread_since_ >= 0 && guard_) guard_->Excuse(now - unread_since_);
  unread_since_ = to_server_.full() || paced() ? now : -1;
}

bool Connection::EndTurn(double now) {
  if (!broken_) WriteServer();
  if (!broken_ && phase_ != Phase::kHandshake) WriteClient();
  if (broken_) return false;
  // The server alone never fills more than an outbox and one read; the rest are answers of the guard.
  if (to_client_.pending().size() > kToClientBytesMax) return false;
  if (client_ended_ && (phase_ == Phase::kHandshake || phase_ == Phase::kOpening)) return false;
  if (phase_ == Phase::kRelaying) {
    if (client_ended_ && to_server_.empty() && !server_told_) {
      shutdown(server_.fd(), SHUT_WR);
      server_told_ = true;
    }
    if (server_ended_) Close(now);
  }
  if (phase_ == Phase::kClosing && to_client_.empty()) {
    if (client_ended_) return false;
    if (!client_told_) {
      if (tls_ != nullptr) SSL_shutdown(tls_);
      ERR_clear_error();
      shutdown(client_.fd(), SHUT_WR);
      client_told_ = true;
      close_by_ = std::min(close_by_, now + kCloseSeconds);
    }
  }
  ExcuseClient(now);
  // TLS that has something to write first reads nothing, and would be told of the same bytes again and again.
  const bool held = now < setup_.read_from;
  const bool read_client = !held && !client_ended_ && !to_server_.full() && !paced() && !tls_wants_write_;
  client_.Want((read_client ? EPOLLIN : 0U) | (held ? EPOLLRDHUP : 0U) |
               (tls_wants_write_ || !to_client_.empty() ? EPOLLOUT : 0U));
  const bool read_server = phase_ == Phase::kRelaying && !server_ended_ && !to_client_.full();
  server_.Want((read_server ? EPOLLIN : 0U) | (!to_server_.empty() ? EPOLLOUT : 0U));
  return true;
}

// ---- The client's side ----

void Connection::Handshake() {
  ERR_clear_error();
  const int result = SSL_do_handshake(tls_);
  if (result == 1) {
    phase_ = Phase::kOpening;
    return;
  }
  switch (SSL_get_error(tls_, result)) {
    case SSL_ERROR_WANT_READ:
      break;
    case SSL_ERROR_WANT_WRITE:
      tls_wants_write_ = true;
      break;
    default:
      broken_ = true;
  }
}

ssize_t Connection::ReceiveClient(char* bytes, size_t size) {
  if (tls_ == nullptr) {
    const ssize_t count = recv(client_.fd(), bytes, size, 0);
    if (count < 0 && errno != EAGAIN && errno != EINTR) broken_ = true;
    return count;
  }
  ERR_clear_error();
  const int count = SSL_read(tls_, bytes, static_cast<int>(size));
  if (count > 0) return count;
  switch (SSL_get_error(tls_, count)) {
    case SSL_ERROR_WANT_WRITE:
      tls_wants_write_ = true;
      return -1;
    case SSL_ERROR_WANT_READ:
      return -1;
    case SSL_ERROR_ZERO_RETURN:
      return 0;
    default:
      broken_ = true;
      return -1;
  }
}

void Connection::ReadClient(double now, char* scratch) {
  if (client_ended_ || to_server_.full() || paced()) return;
  const ssize_t count = ReceiveClient(scratch, kReadBytes);
  if (count == 0) client_ended_ = true;
  if (count <= 0) return;
  if (phase_ == Phase::kClosing) {
    discarded_bytes_ += count;
    if (discarded_bytes_ > kDiscardedBytesMax) broken_ = true;
    return;
  }
  const std::string_view bytes(scratch, count);
  if (partial_.empty()) {
    if (const absl::StatusOr<size_t> consumed = Pass(bytes, now); consumed.ok()) partial_ = bytes.substr(*consumed);
    return;
  }
  partial_.append(bytes);
  FilterPartial(now);
}

void Connection::FilterPartial(double now) {
  std::string bytes = std::exchange(partial_, {});
  const absl::StatusOr<size_t> consumed = Pass(bytes, now);
  if (!consumed.ok()) return;
  bytes.erase(0, *consumed);
  partial_ = std::move(bytes);
}

absl::StatusOr<size_t> Connection::Pass(std::string_view bytes, double now) {
  const absl::StatusOr<size_t> consumed = guard_->FromClient(bytes, now, to_server_.text());
  if (!consumed.ok()) {
    Fault(consumed.status(), now);
  } else if (phase_ == Phase::kOpening && guard_->open()) {
    HandOn(now);
  }
  return consumed;
}

void Connection::WriteClient() {
  while (!to_client_.empty()) {
    const std::string_view pending = to_client_.pending();
    ssize_t count = 0;
    if (tls_ == nullptr) {
      count = send(client_.fd(), pending.data(), pending.size(), MSG_NOSIGNAL);
      if (count < 0 && errno != EAGAIN && errno != EINTR) broken_ = true;
    } else {
      ERR_clear_error();
      count = SSL_write(tls_, pending.data(), static_cast<int>(pending.size()));
      const int error = count > 0 ? SSL_ERROR_NONE : SSL_get_error(tls_, static_cast<int>(count));
      broken_ |= error != SSL_ERROR_NONE && error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE;
    }
    if (count <= 0) return;
    to_client_.Sent(count);
    client_full_since_ = -1;
  }
}

// ---- The server's side ----

void Connection::HandOn(double now) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0) {
    Log(now, absl::StrCat("it is closed, for there is no descriptor for it: ", std::strerror(errno)));
    broken_ = true;
    return;
  }
  server_.Attach(setup_.epoll, ends[0], 2 * setup_.id + 1);
  phase_ = Phase::kRelaying;
  setup_.hand_on(ends[1], setup_.peer);
}

void Connection::ReadServer(char* scratch, double now) {
  if (phase_ != Phase::kRelaying || server_ended_ || to_client_.full()) return;
  const ssize_t count = recv(server_.fd(), scratch, kReadBytes, 0);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
  if (count <= 0) {
    server_ended_ = true;
    return Close(now);
  }
  std::string_view bytes(scratch, count);
  if (partial_from_server_.empty()) {
    bytes.remove_prefix(guard_->FromServer(bytes, to_client_.text()));
    partial_from_server_ = bytes;
    return;
  }
  partial_from_server_.append(bytes);
  partial_from_server_.erase(0, guard_->FromServer(partial_from_server_, to_client_.text()));
}

void Connection::WriteServer() {
  while (!to_server_.empty() && server_.fd() >= 0) {
    const std::string_view pending = to_server_.pending();
    const ssize_t count = send(server_.fd(), pending.data(), pending.size(), MSG_NOSIGNAL);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (count <= 0) {
      // The server has closed its end. What it wrote before is still to be read.
      to_server_.Sent(pending.size());
      return;
    }
    to_server_.Sent(count);
  }
}

// ---- The end ----

void Connection::Fault(const absl::Status& reason, double now) {
  setup_.on_fault();
  Refuse(reason, now);
}

void Connection::Refuse(const absl::Status& reason, double now) {
  Log(now, absl::StrCat("the connection is closed: ", std::string(reason.message())));
  if (phase_ == Phase::kRelaying) to_client_.text()->append(guard_->GoAway(reason));
  Close(now);
}

void Connection::Close(double now) {
  if (phase_ == Phase::kClosing) return;
  phase_ = Phase::kClosing;
  close_by_ = now + kLastBytesSeconds;
  server_.Detach();
  guard_.reset();
  account_.reset();
  partial_.clear();
  to_server_.Sent(to_server_.pending().size());
}

}  // namespace goldfinch
