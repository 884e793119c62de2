#include "worker/transport/keyed_sockets.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <list>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/host_port.h"
#include "base/resolve.h"
#include "base/status.h"

namespace goldfinch {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::string_view kMagic = "goldfinch rows 1";
constexpr std::string_view kSender = "sender of rows", kReceiver = "receiver of rows";  // roles
constexpr char kAccepted = '+';

// What each side reads.
constexpr size_t kHelloBytes = kMagic.size() + 4 + 4 + SharedKey::kNonceBytes;
constexpr size_t kAnswerBytes = SharedKey::kNonceBytes + SharedKey::kProofBytes;

constexpr auto kRedialTime = std::chrono::milliseconds(50);      // after a connection that broke during the handshake
constexpr auto kDescriptorTime = std::chrono::milliseconds(50);  // when there are no descriptors to accept with

Clock::duration Seconds(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

void AppendNumber(uint32_t number, std::string* out) {
  for (int shift = 0; shift < 32; shift += 8) out->push_back(static_cast<char>(number >> shift));
}
uint32_t ReadNumber(std::string_view bytes) {
  uint32_t number = 0;
  for (int i = 0; i < 4; ++i) number |= uint32_t{static_cast<unsigned char>(bytes[i])} << (8 * i);
  return number;
}

// The address is a number, so that nothing waits for a resolver.
absl::StatusOr<AddressList> ReadAddress(const std::string& host, int port, int flags = 0) {
  absl::StatusOr<AddressList> found = ResolveHost(host, port, flags | AI_NUMERICHOST);
  if (!found.ok()) return absl::UnavailableError(absl::StrCat(host, ": ", found.status().message()));
  return found;
}

absl::Status SystemError(const std::string& what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(errno)));
}

// All messages are short, so they fit into the buffer of a new connection.
bool SendAll(int fd, std::string_view bytes) {
  return send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size());
}

// A connection that is not proved yet. `until` has an end if it is one that somebody has opened to us.
struct Link {
  enum class State { kConnecting, kAwaitsAnswer, kAwaitsAcceptance, kAwaitsHello, kAwaitsProof };

  Socket socket;
  State state;
  int peer = -1;  // of one that has connected to us: known once it has said so
  Clock::time_point until = Clock::time_point::max();
  size_t bytes_wanted = 0;
  std::string received = {};
  std::string sender_nonce = {}, receiver_nonce = {};
};

}  // namespace

Socket& Socket::operator=(Socket&& other) noexcept {
  if (this != &other) {
    if (fd_ >= 0) close(fd_);
    fd_ = other.Release();
  }
  return *this;
}

Socket::~Socket() {
  if (fd_ >= 0) close(fd_);
}

// ---- Connect ----

// What Connect does: one loop over all connections, none of which blocks.
class KeyedSockets::Meeting {
 public:
  Meeting(const KeyedSockets& self, const std::vector<std::string>& addresses) : self_(self), addresses_(addresses) {
    sockets_.to.resize(addresses.size());
    sockets_.from.resize(addresses.size());
  }

  absl::StatusOr<Sockets> Run(double timeout_seconds) {
    const Clock::time_point deadline = Clock::now() + Seconds(timeout_seconds);
    for (int peer = 0; peer < static_cast<int>(addresses_.size()); ++peer) {
      if (!addresses_[peer].empty()) GF_RETURN_IF_ERROR(Dial(peer));
    }
    while (!Missing().empty()) {
      const Clock::time_point now = Clock::now();
      if (now >= deadline) {
        return absl::UnavailableError(
            absl::StrCat("not connected to stage ", absl::StrJoin(Missing(), ", "), " within ", timeout_seconds, " s"));
      }
      GF_RETURN_IF_ERROR(Wait(std::min(deadline, DropLateStrangers(now))));
    }
    return std::move(sockets_);
  }

 private:
  std::vector<int> Missing() const {
    std::vector<int> missing;
    for (int peer = 0; peer < static_cast<int>(addresses_.size()); ++peer) {
      const bool to = !addresses_[peer].empty() && sockets_.to[peer].fd() < 0;
      if (to || is_awaited(peer)) missing.push_back(peer);
    }
    return missing;
  }
  // Whether this stage has still to hear from the peer.
  bool is_awaited(int64_t peer) const {
    return peer < static_cast<int64_t>(self_.receives_from_.size()) && self_.receives_from_[peer] &&
           sockets_.from[peer].fd() < 0;
  }

  absl::Status Dial(int peer) {
    const auto failed = [&](const absl::Status& why) {
      return absl::UnavailableError(absl::StrCat("connect to stage ", peer, ": ", std::string(why.message())));
    };
    const absl::StatusOr<HostPort> address = ParseHostPort(addresses_[peer]);
    if (!address.ok()) return failed(address.status());
    const auto found = ReadAddress(address->host, address->port);
    if (!found.ok()) return failed(found.status());
    Link link{.socket = Socket(socket((*found)->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)),
              .state = Link::State::kConnecting,
              .peer = peer};
    if (link.socket.fd() < 0 ||
        (connect(link.socket.fd(), (*found)->ai_addr, (*found)->ai_addrlen) != 0 && errno != EINPROGRESS)) {
      return failed(SystemError(addresses_[peer]));
    }
    links_.push_back(std::move(link));
    return absl::OkStatus();
  }

  // Returns when the next one is late.
  Clock::time_point DropLateStrangers(Clock::time_point now) {
    Clock::time_point next = redial_at();
    if (now < listens_from_) next = std::min(next, listens_from_);
    for (auto link = links_.begin(); link != links_.end();) {
      if (now >= link->until) {
        link = links_.erase(link);
      } else {
        next = std::min(next, link->until);
        ++link;
      }
    }
    return next;
  }

  Clock::time_point redial_at() const { return redials_.empty() ? Clock::time_point::max() : redials_.front().second; }

  absl::Status Wait(Clock::time_point until) {
    std::vector<pollfd> polls = {{self_.abort_.fd(), POLLIN, 0}};
    const Clock::time_point now = Clock::now();
    const bool listens = self_.listener_.fd() >= 0 && now >= listens_from_;
    polls.push_back({listens ? self_.listener_.fd() : -1, POLLIN, 0});
    for (const Link& link : links_) {
      const bool writes = link.state == Link::State::kConnecting;
      polls.push_back({link.socket.fd(), static_cast<int16_t>(writes ? POLLOUT : POLLIN), 0});
    }
    const auto wait = std::chrono::ceil<std::chrono::milliseconds>(std::max(until - now, Clock::duration::zero()));
    if (poll(polls.data(), polls.size(), static_cast<int>(std::min<int64_t>(wait.count(), 60'000))) < 0 &&
        errno != EINTR) {
      return SystemError("poll");
    }
    if (polls[0].revents != 0) return absl::UnavailableError("the group has ended");
    size_t i = 2;
    for (auto link = links_.begin(); link != links_.end(); ++i) {
      const auto here = link++;
      if (polls[i].revents == 0) continue;
      GF_ASSIGN_OR_RETURN(const bool keep, Handle(*here));
      if (!keep) links_.erase(here);
    }
    if (polls[1].revents != 0) Accept();
    while (Clock::now() >= redial_at()) {
      const int peer = redials_.front().first;
      redials_.pop_front();
      GF_RETURN_IF_ERROR(Dial(peer));
    }
    return absl::OkStatus();
  }

  void Accept() {
    // The rest waits for the next turn: the links, the deadline and Abort get theirs.
    for (size_t i = 0; i < kStrangersMax / 2; ++i) {
      Socket socket(accept4(self_.listener_.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (socket.fd() < 0) {
        if (errno == EINTR || errno == ECONNABORTED) continue;
        // Without descriptors the listener stays readable: the loop must not spin until there are some.
        if (errno != EAGAIN && errno != EWOULDBLOCK) listens_from_ = Clock::now() + kDescriptorTime;
        return;
      }
      listens_from_ = Clock::time_point::min();
      const auto is_stranger = [](const Link& link) { return link.until != Clock::time_point::max(); };
      if (std::count_if(links_.begin(), links_.end(), is_stranger) >= static_cast<int64_t>(kStrangersMax)) {
        links_.erase(std::find_if(links_.begin(), links_.end(), is_stranger));
      }
      links_.push_back({.socket = std::move(socket),
                        .state = Link::State::kAwaitsHello,
                        .until = Clock::now() + Seconds(kStrangerSeconds),
                        .bytes_wanted = kHelloBytes});
    }
  }

  // Returns whether to go on with the link. An error means that its peer can never be reached.
  absl::StatusOr<bool> Handle(Link& link) {
    if (link.state == Link::State::kConnecting) return Connected(link);
    char buffer[kHelloBytes + kAnswerBytes];
    const ssize_t got =
        recv(link.socket.fd(), buffer, std::min(sizeof(buffer), link.bytes_wanted - link.received.size()), 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    if (got <= 0) {
      // The peer may have dropped this connection because strangers crowded it out.
      if (link.until == Clock::time_point::max()) redials_.emplace_back(link.peer, Clock::now() + kRedialTime);
      return false;
    }
    link.received.append(buffer, got);
    if (link.received.size() < link.bytes_wanted) return true;
    switch (link.state) {
      case Link::State::kConnecting:
        return true;
      case Link::State::kAwaitsHello:
        return HandleHello(link);
      case Link::State::kAwaitsAnswer:
        return HandleAnswer(link);
      case Link::State::kAwaitsProof:
        return HandleProof(link);
      case Link::State::kAwaitsAcceptance:
        return HandleAcceptance(link);
    }
    return false;
  }

  static void Await(Link& link, Link::State state, size_t bytes) {
    link.received.clear();
    link.state = state;
    link.bytes_wanted = bytes;
  }

  absl::Status Lost(int peer, const std::string& why) const {
    return absl::UnavailableError(absl::StrCat("stage ", peer, " at ", addresses_[peer], ": ", why));
  }

  // ---- This stage is the sender ----

  absl::StatusOr<bool> Connected(Link& link) {
    int error = 0;
    socklen_t size = sizeof(error);
    getsockopt(link.socket.fd(), SOL_SOCKET, SO_ERROR, &error, &size);
    if (error != 0) return Lost(link.peer, std::strerror(error));
    link.sender_nonce = MakeNonce();
    std::string hello(kMagic);
    AppendNumber(static_cast<uint32_t>(self_.stage_), &hello);
    AppendNumber(static_cast<uint32_t>(link.peer), &hello);
    hello += link.sender_nonce;
    if (!SendAll(link.socket.fd(), hello)) return Lost(link.peer, "it does not take a greeting");
    Await(link, Link::State::kAwaitsAnswer, kAnswerBytes);
    return true;
  }

  absl::StatusOr<bool> HandleAnswer(Link& link) {
    link.receiver_nonce = link.received.substr(0, SharedKey::kNonceBytes);
    const std::string_view proof = std::string_view(link.received).substr(SharedKey::kNonceBytes);
    if (!Accepts(kReceiver, link, self_.stage_, link.peer, proof)) {
      return Lost(link.peer, "it does not have the key of this generation");
    }
    if (!SendAll(link.socket.fd(), Prove(kSender, link, self_.stage_, link.peer))) {
      return Lost(link.peer, "it does not take a proof");
    }
    Await(link, Link::State::kAwaitsAcceptance, 1);
    return true;
  }

  absl::StatusOr<bool> HandleAcceptance(Link& link) {
    if (link.received[0] != kAccepted) return Lost(link.peer, "it does not accept the connection");
    sockets_.to[link.peer] = std::move(link.socket);
    return false;
  }

  // ---- This stage is the receiver: whoever does not fit is a stranger ----

  bool HandleHello(Link& link) {
    const std::string_view hello = link.received;
    if (hello.substr(0, kMagic.size()) != kMagic) return false;
    const auto from = static_cast<int64_t>(ReadNumber(hello.substr(kMagic.size())));
    const auto to = static_cast<int64_t>(ReadNumber(hello.substr(kMagic.size() + 4)));
    if (to != self_.stage_ || !is_awaited(from)) return false;
    link.peer = static_cast<int>(from);
    link.sender_nonce = hello.substr(kMagic.size() + 8);
    link.receiver_nonce = MakeNonce();
    if (!SendAll(link.socket.fd(), link.receiver_nonce + Prove(kReceiver, link, link.peer, self_.stage_))) return false;
    Await(link, Link::State::kAwaitsProof, SharedKey::kProofBytes);
    return true;
  }

  bool HandleProof(Link& link) {
    if (!is_awaited(link.peer) || !Accepts(kSender, link, link.peer, self_.stage_, link.received)) return false;
    if (!SendAll(link.socket.fd(), std::string_view(&kAccepted, 1))) return false;
    sockets_.from[link.peer] = std::move(link.socket);
    return false;
  }

  std::string Prove(std::string_view role, const Link& link, int sender, int receiver) const {
    return self_.key_.Prove(role,
                            {absl::StrCat(sender), absl::StrCat(receiver), link.sender_nonce, link.receiver_nonce});
  }
  bool Accepts(std::string_view role, const Link& link, int sender, int receiver, std::string_view proof) const {
    return self_.key_.Accepts(proof, role,
                              {absl::StrCat(sender), absl::StrCat(receiver), link.sender_nonce, link.receiver_nonce});
  }

  const KeyedSockets& self_;
  const std::vector<std::string>& addresses_;
  Sockets sockets_;
  std::list<Link> links_;
  std::list<std::pair<int, Clock::time_point>> redials_;       // (peer, when), the first first
  Clock::time_point listens_from_ = Clock::time_point::min();  // later when there were no descriptors
};

absl::StatusOr<std::unique_ptr<KeyedSockets>> KeyedSockets::Listen(const std::string& address, const std::string& key,
                                                                   int stage, std::vector<bool> receives_from) {
  const bool listens = std::find(receives_from.begin(), receives_from.end(), true) != receives_from.end();
  std::unique_ptr<KeyedSockets> self(new KeyedSockets(key, stage, std::move(receives_from)));
  self->abort_ = Socket(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (self->abort_.fd() < 0) return SystemError("eventfd");
  if (!listens) return self;
  GF_ASSIGN_OR_RETURN(const auto found, ReadAddress(address, 0, AI_PASSIVE));
  self->listener_ = Socket(socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  const int fd = self->listener_.fd();
  sockaddr_storage own = {};
  socklen_t size = sizeof(own);
  if (fd < 0 || bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, SOMAXCONN) != 0 ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&own), &size) != 0) {
    return SystemError(absl::StrCat("listen on ", address));
  }
  self->address_ = HostPort{address, PortOf(reinterpret_cast<const sockaddr&>(own))}.ToString();
  return self;
}

KeyedSockets::~KeyedSockets() = default;

absl::StatusOr<KeyedSockets::Sockets> KeyedSockets::Connect(const std::vector<std::string>& addresses,
                                                            double timeout_seconds) {
  if (addresses.size() != receives_from_.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(addresses.size(), " addresses for a group of ", receives_from_.size(), " stages"));
  }
  absl::StatusOr<Sockets> sockets = Meeting(*this, addresses).Run(timeout_seconds);
  listener_ = Socket();
  return sockets;
}

void KeyedSockets::Abort() {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = write(abort_.fd(), &one, sizeof(one));
}

}  // namespace goldfinch
