#include "coordinator/front/loop.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <future>
#include <optional>
#include <string>
#include <utility>

#include "base/check.h"
#include "spdlog/spdlog.h"

namespace goldfinch {
namespace {

constexpr double kTickSeconds = 0.5;
constexpr double kPaceSeconds = 0.005;
constexpr double kTlsPollSeconds = 1;
constexpr double kAcceptPauseSeconds = 0.1;
// The work of one turn.
constexpr int kEventsMax = 256;
constexpr int kHandshakesMax = 8;  // steps; one takes up to some milliseconds
constexpr int kAcceptsMax = 32;

// The keys of events: connections have 2 * id and 2 * id + 1, with ids from kIdFirst on; listeners their place.
constexpr uint64_t kWakeKey = 0, kListenerKey = 1, kIdFirst = uint64_t{1} << 20;

// False if there is no memory for it.
bool EpollControl(int epoll, int action, int fd, uint64_t key) {
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.u64 = key;
  return epoll_ctl(epoll, action, fd, &event) == 0 || errno == EEXIST;
}

}  // namespace

FrontLoop::FrontLoop(FrontShared* shared)
    : shared_(shared),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      scratch_(Connection::kReadBytes),
      id_next_(kIdFirst) {
  GF_CHECK(epoll_ >= 0 && wake_ >= 0) << std::strerror(errno);
  EpollControl(epoll_, EPOLL_CTL_ADD, wake_, kWakeKey);
  thread_ = std::thread([this] { Run(); });
}

FrontLoop::~FrontLoop() {
  End(0);
  Join();
  close(epoll_);
  close(wake_);
}

void FrontLoop::Join() {
  if (thread_.joinable()) thread_.join();
}

void FrontLoop::Post(std::function<void()> task) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  const uint64_t one = 1;
  GF_CHECK(write(wake_, &one, sizeof(one)) == static_cast<ssize_t>(sizeof(one)) || errno == EAGAIN);
}

void FrontLoop::End(double seconds) {
  Post([this, seconds] { end_by_ = now_ + seconds; });
}

void FrontLoop::Accept(std::vector<Listener> listeners, std::vector<FrontLoop*> loops) {
  auto shared_listeners = std::make_shared<std::vector<Listener>>(std::move(listeners));
  Post([this, shared_listeners, loops = std::move(loops)] {
    listeners_ = std::move(*shared_listeners);
    loops_ = loops;
    reserve_ = open("/dev/null", O_RDONLY | O_CLOEXEC);
    tls_poll_at_ = now_ + kTlsPollSeconds;
    for (size_t i = 0; i < listeners_.size(); ++i) {
      EpollControl(epoll_, EPOLL_CTL_ADD, listeners_[i].fd(), kListenerKey + i);
    }
  });
}

void FrontLoop::StopAccepting() {
  std::promise<void> done;
  Post([this, &done] {
    listeners_.clear();
    if (reserve_ >= 0) close(std::exchange(reserve_, -1));
    absl::erase_if(connections_, [this](const auto& entry) {
      if (entry.second->handed_on()) return false;
      shared_->admission.Leave(entry.second->peer());
      return true;
    });
    done.set_value();
  });
  done.get_future().wait();
}

// ---- One turn ----

void FrontLoop::Run() {
  // OpenSSL writes to sockets without MSG_NOSIGNAL.
  sigset_t pipe;
  sigemptyset(&pipe);
  sigaddset(&pipe, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &pipe, nullptr);
  now_ = SteadySeconds();
  while (end_by_ < 0 || (!connections_.empty() && now_ < end_by_)) {
    std::array<epoll_event, kEventsMax> events;
    const int count = epoll_wait(epoll_, events.data(), kEventsMax, TimeoutMs());
    now_ = SteadySeconds();
    int handshakes = 0;
    // The handshakes that are left out are reported again.
    for (int i = 0; i < count; ++i) RunEvent(events[i].data.u64, events[i].events, &handshakes);
    RunTasks();
    if (!paced_.empty() && now_ >= pace_at_) RunPaced();
    if (paused_until_ >= 0 && now_ >= paused_until_) PauseAccepting(false);
    if (now_ >= tick_at_) Tick();
  }
  for (const auto& [id, connection] : connections_) shared_->admission.Leave(connection->peer());
  connections_.clear();
  listeners_.clear();
  if (reserve_ >= 0) close(std::exchange(reserve_, -1));
  // Whoever waits for StopAccepting must hear of it.
  RunTasks();
}

void FrontLoop::RunPaced() {
  pace_at_ = now_ + kPaceSeconds;
  pacing_.assign(paced_.begin(), paced_.end());
  paced_.clear();
  for (const uint64_t id : pacing_) {
    With(id, [this](Connection& connection) { return connection.OnPace(now_); });
  }
}

int FrontLoop::TimeoutMs() const {
  if (!paced_.empty()) return static_cast<int>(kPaceSeconds * 1000);
  if (paused_until_ >= 0) return static_cast<int>(kAcceptPauseSeconds * 1000);
  const bool polls = !connections_.empty() || !loops_.empty();
  return polls ? static_cast<int>(kTickSeconds * 1000) : -1;
}

void FrontLoop::RunEvent(uint64_t key, uint32_t events, int* handshakes) {
  if (key == kWakeKey) {
    uint64_t count = 0;
    (void)!read(wake_, &count, sizeof(count));
    return;
  }
  if (key < kIdFirst) {
    if (key - kListenerKey < listeners_.size()) AcceptSome(listeners_[key - kListenerKey]);
    return;
  }
  With(key / 2, [&](Connection& connection) {
    if (key % 2 != 0) return connection.OnServer(events, now_, scratch_.data());
    if (connection.shaking_hands() && ++*handshakes > kHandshakesMax) return true;
    return connection.OnClient(events, now_, scratch_.data());
  });
}

void FrontLoop::RunTasks() {
  std::vector<std::function<void()>> tasks;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    tasks.swap(tasks_);
  }
  for (const std::function<void()>& task : tasks) task();
}

template <typename Call>
void FrontLoop::With(uint64_t id, Call call) {
  const auto found = connections_.find(id);
  if (found == connections_.end()) return;
  if (call(*found->second)) {
    if (found->second->paced()) paced_.insert(id);
    return;
  }
  shared_->admission.Leave(found->second->peer());
  connections_.erase(found);
}

void FrontLoop::Tick() {
  tick_at_ = now_ + kTickSeconds;
  absl::erase_if(connections_, [this](const auto& entry) {
    if (entry.second->Tick(now_)) return false;
    shared_->admission.Leave(entry.second->peer());
    return true;
  });
  if (loops_.empty()) return;  // the loop that accepts does this for all, also while the server drains
  shared_->pool.Tick(now_);
  if (listeners_.empty()) return;
  if (shared_->tls != nullptr && now_ >= tls_poll_at_) {
    tls_poll_at_ = now_ + kTlsPollSeconds;
    shared_->tls->Poll();
  }
}

// ---- New connections ----

void FrontLoop::AcceptSome(const Listener& listener) {
  for (int i = 0; i < kAcceptsMax; ++i) {
    sockaddr_storage address{};
    socklen_t size = sizeof(address);
    const int fd = accept4(listener.fd(), reinterpret_cast<sockaddr*>(&address), &size, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0) {
      Place(fd, ToPeerAddress(address));
      continue;
    }
    if (errno == EAGAIN) return;
    const bool exhausted = errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS;
    // Any other error is one of the connection, which is gone.
    if (exhausted) return TurnAway(listener, errno);
  }
}

void FrontLoop::TurnAway(const Listener& listener, int error) {
  if (const std::optional<std::string> more = shared_->refusals.Take(now_)) {
    spdlog::warn("no connection can be taken: {}{}", std::strerror(error), *more);
  }
  if (reserve_ >= 0) {
    close(reserve_);
    const int fd = accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC);
    if (fd >= 0) close(fd);
    reserve_ = open("/dev/null", O_RDONLY | O_CLOEXEC);
  }
  PauseAccepting(true);
}

void FrontLoop::PauseAccepting(bool paused) {
  paused_until_ = paused ? now_ + kAcceptPauseSeconds : -1;
  if (!paused && reserve_ < 0) reserve_ = open("/dev/null", O_RDONLY | O_CLOEXEC);
  for (size_t i = 0; i < listeners_.size(); ++i) {
    const bool done =
        EpollControl(epoll_, paused ? EPOLL_CTL_DEL : EPOLL_CTL_ADD, listeners_[i].fd(), kListenerKey + i);
    if (!paused && !done) paused_until_ = now_ + kAcceptPauseSeconds;
  }
}

void FrontLoop::Place(int fd, const PeerAddress& peer) {
  if (const absl::Status status = shared_->admission.Enter(peer); !status.ok()) {
    if (const std::optional<std::string> more = shared_->refusals.Take(now_)) {
      spdlog::warn("client {} is turned away: {}{}", peer.Text(), std::string(status.message()), *more);
    }
    close(fd);
    return;
  }
  FrontLoop* loop = loops_[loop_next_++ % loops_.size()];
  if (loop == this) return Add(fd, peer);
  loop->Post([loop, fd, peer] { loop->Add(fd, peer); });
}

void FrontLoop::Add(int fd, const PeerAddress& peer) {
  const uint64_t id = id_next_++;
  Connection::Setup setup;
  setup.epoll = epoll_;
  setup.id = id;
  setup.fd = fd;
  setup.peer = peer;
  setup.limits = &shared_->options.limits;
  if (shared_->tls != nullptr) setup.tls = shared_->tls->context();
  setup.pool = &shared_->pool;
  setup.owner.address = peer.network;
  setup.owner.loopback = peer.loopback;
  setup.owner.on_room = [this, id] {
    Post([this, id] { With(id, [this](Connection& connection) { return connection.OnRoom(now_); }); });
  };
  setup.owner.evict = [this, id] {
    Post([this, id] { With(id, [this](Connection& connection) { return connection.Evicted(now_); }); });
  };
  setup.log = &shared_->faults;
  setup.on_fault = [this, peer] { shared_->admission.Fault(peer, now_); };
  if (const double seconds = shared_->admission.HoldSeconds(peer, now_); seconds > 0) {
    setup.read_from = now_ + seconds;
    if (const std::optional<std::string> more = shared_->holds.Take(now_)) {
      spdlog::warn(
          "client {} is not read for {:.1f} s, because too many connections from its address broke the rules{}",
          peer.Text(), seconds, *more);
    }
  }
  setup.hand_on = [this](int server_fd, const PeerAddress& from) {
    shared_->on_connection({.fd = server_fd, .peer = from});
  };
  connections_[id] = std::make_unique<Connection>(std::move(setup), now_);
}

}  // namespace goldfinch
