#include "coordinator/front/raw_client.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <utility>

#include "base/check.h"
#include "base/resolve.h"
#include "openssl/ssl.h"
#include "openssl/x509.h"

namespace goldfinch {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kSeconds = 20;

bool WaitFor(int fd, int16_t events, Clock::time_point until) {
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now()).count();
  pollfd one = {fd, events, 0};
  return poll(&one, 1, static_cast<int>(std::max<int64_t>(0, left))) > 0;
}

Clock::time_point After(double seconds) {
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

}  // namespace

std::string ReadFrom(int fd, size_t bytes) {
  std::string text;
  const auto until = After(kSeconds);
  char part[65536];
  while (text.size() < bytes && WaitFor(fd, POLLIN, until)) {
    const ssize_t count = recv(fd, part, sizeof(part), MSG_DONTWAIT);
    if (count <= 0) break;
    text.append(part, count);
  }
  return text;
}

RawClient::RawClient(int port, const std::string& host) {
  // OpenSSL writes to sockets whose other end may be closed.
  std::signal(SIGPIPE, SIG_IGN);  // NOLINT(cert-err33-c)
  const absl::StatusOr<AddressList> found = ResolveHost(host, port, AI_NUMERICHOST);
  GF_CHECK(found.ok()) << host;
  fd_ = socket((*found)->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  GF_CHECK(fd_ >= 0);
  GF_CHECK_EQ(connect(fd_, (*found)->ai_addr, (*found)->ai_addrlen), 0) << host << " " << port;
  const int yes = 1;
  setsockopt(fd_, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof(yes));
}

RawClient::RawClient(RawClient&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      context_(std::exchange(other.context_, nullptr)),
      tls_(std::exchange(other.tls_, nullptr)) {}

RawClient::~RawClient() {
  SSL_free(tls_);
  SSL_CTX_free(context_);
  Close();
}

void RawClient::Close() {
  if (fd_ >= 0) close(std::exchange(fd_, -1));
}

bool RawClient::StartTls() {
  static constexpr unsigned char kHttp2[] = {2, 'h', '2'};
  context_ = SSL_CTX_new(TLS_client_method());
  tls_ = SSL_new(context_);
  SSL_set_fd(tls_, fd_);
  SSL_set_alpn_protos(tls_, kHttp2, sizeof(kHttp2));
  return SSL_connect(tls_) == 1;
}

std::string RawClient::ServerName() const {
  X509* certificate = SSL_get1_peer_certificate(tls_);
  GF_CHECK(certificate != nullptr);
  char name[256] = "";
  X509_NAME_get_text_by_NID(X509_get_subject_name(certificate), NID_commonName, name, sizeof(name));
  X509_free(certificate);
  return name;
}

bool RawClient::Send(const std::string& bytes, double seconds) {
  if (tls_ != nullptr) return SSL_write(tls_, bytes.data(), static_cast<int>(bytes.size())) > 0;
  for (size_t sent = 0; sent < bytes.size();) {
    if (!WaitFor(fd_, POLLOUT, After(seconds))) return false;
    const ssize_t count = send(fd_, bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0) return false;
    sent += count;
  }
  return true;
}

std::string RawClient::Read(size_t bytes) {
  if (tls_ == nullptr) return ReadFrom(fd_, bytes);
  std::string text(bytes, '\0');
  size_t count = 0;
  for (int part = 1; part > 0 && count < bytes; count += std::max(part, 0)) {
    part = SSL_read(tls_, text.data() + count, static_cast<int>(bytes - count));
  }
  text.resize(count);
  return text;
}

std::string RawClient::ReadToEnd(bool* ended, double seconds) {
  std::string text;
  const auto until = After(seconds);
  char part[65536];
  *ended = false;
  while (!*ended && WaitFor(fd_, POLLIN, until)) {
    const ssize_t count = recv(fd_, part, sizeof(part), MSG_DONTWAIT);
    *ended = count <= 0;
    if (count > 0) text.append(part, count);
  }
  return text;
}

void RawClient::EndWriting() { GF_CHECK_EQ(shutdown(fd_, SHUT_WR), 0); }

}  // namespace goldfinch
