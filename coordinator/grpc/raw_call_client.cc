#include "coordinator/grpc/raw_call_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "base/check.h"

namespace goldfinch {
namespace {

enum FrameType { kData = 0, kHeaders = 1, kReset = 3, kSettings = 4, kPing = 6, kGoAway = 7, kWindowUpdate = 8 };
constexpr int kEndStream = 1;
constexpr int kAck = 1;
constexpr int kEndHeaders = 4;
constexpr size_t kFrameHeaderBytes = 9;
constexpr size_t kDataBytesMax = 16384;
constexpr int kInitialWindowSize = 4;  // a setting

std::string BigEndian(uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16), static_cast<char>(value >> 8),
          static_cast<char>(value)};
}

uint32_t ReadBigEndian(const std::string& bytes, size_t at, size_t size) {
  uint32_t value = 0;
  for (size_t i = 0; i < size; ++i) value = value << 8 | static_cast<unsigned char>(bytes[at + i]);
  return value;
}

// A header that is not indexed and not compressed.
std::string Literal(const std::string& name, const std::string& value) {
  GF_CHECK(name.size() < 127 && value.size() < 127);
  return std::string(1, '\0') + static_cast<char>(name.size()) + name + static_cast<char>(value.size()) + value;
}

}  // namespace

RawCallClient::RawCallClient(int port) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  GF_CHECK(connect(fd_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0);
  const std::string preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
  GF_CHECK(send(fd_, preface.data(), preface.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(preface.size()));
  Frame(kSettings, 0, 0, "");
}

RawCallClient::~RawCallClient() { close(fd_); }

void RawCallClient::Frame(int type, int flags, uint32_t stream, const std::string& payload) {
  std::string frame = BigEndian(static_cast<uint32_t>(payload.size())).substr(1);
  frame += static_cast<char>(type);
  frame += static_cast<char>(flags);
  frame += BigEndian(stream) + payload;
  // A server that has closed the connection is no fault of the test.
  for (size_t sent = 0; sent < frame.size();) {
    const ssize_t n = send(fd_, frame.data() + sent, frame.size() - sent, MSG_NOSIGNAL);
    if (n <= 0) return;
    sent += n;
  }
}

void RawCallClient::Begin(uint32_t stream, const std::string& method, const Headers& more) {
  std::string block = Literal(":method", "POST") + Literal(":scheme", "http") +
                      Literal(":path", absl::StrCat("/goldfinch.v1.Goldfinch/", method)) +
                      Literal(":authority", "localhost") + Literal("te", "trailers") +
                      Literal("content-type", "application/grpc");
  for (const auto& [name, value] : more) block += Literal(name, value);
  Frame(kHeaders, kEndHeaders, stream, block);
}

void RawCallClient::Send(uint32_t stream, const std::string& bytes, bool end) {
  for (size_t at = 0; at < bytes.size(); at += kDataBytesMax) {
    const bool last = at + kDataBytesMax >= bytes.size();
    Frame(kData, end && last ? kEndStream : 0, stream, bytes.substr(at, kDataBytesMax));
  }
  if (bytes.empty() && end) Frame(kData, kEndStream, stream, "");
}

void RawCallClient::Allow(uint32_t stream, uint32_t bytes) { Frame(kWindowUpdate, 0, stream, BigEndian(bytes)); }

bool RawCallClient::ReadFrame(double seconds) {
  const auto whole = [this] {
    return input_.size() >= kFrameHeaderBytes && input_.size() >= kFrameHeaderBytes + ReadBigEndian(input_, 0, 3);
  };
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (!whole()) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - std::chrono::steady_clock::now());
    pollfd ready = {.fd = fd_, .events = POLLIN, .revents = 0};
    if (closed_ || poll(&ready, 1, static_cast<int>(std::max<int64_t>(0, left.count()))) <= 0) return false;
    std::array<char, 65536> buffer;
    const ssize_t n = recv(fd_, buffer.data(), buffer.size(), 0);
    if (n <= 0) closed_ = true;
    if (n > 0) input_.append(buffer.data(), n);
  }
  const uint32_t size = ReadBigEndian(input_, 0, 3);
  const int type = input_[3], flags = input_[4];
  const uint32_t stream = ReadBigEndian(input_, 5, 4);
  const std::string payload = input_.substr(kFrameHeaderBytes, size);
  input_.erase(0, kFrameHeaderBytes + size);
  if (type == kSettings && (flags & kAck) == 0) {
    for (size_t at = 0; at + 6 <= payload.size(); at += 6) {
      if (ReadBigEndian(payload, at, 2) == kInitialWindowSize) initial_window_ = ReadBigEndian(payload, at + 2, 4);
    }
    Frame(kSettings, kAck, 0, "");
  }
  if (type == kPing && (flags & kAck) == 0) Frame(kPing, kAck, 0, payload);
  if (type == kWindowUpdate) updates_.emplace_back(stream, ReadBigEndian(payload, 0, 4));
  if (type == kReset && !status_) status_ = -1;
  // gRPC does not compress its first trailers: the name, the length of the value, and the value.
  const size_t name = type == kHeaders ? payload.find("grpc-status") : std::string::npos;
  if (name != std::string::npos && !status_) {
    const size_t at = name + std::string("grpc-status").size();
    status_ = std::stoi(payload.substr(at + 1, payload[at]));
  }
  return true;
}

int RawCallClient::WaitStatus() {
  while (!status_ && !closed_) ReadFrame(1);
  return status_.value_or(-1);
}

bool RawCallClient::WaitWindow(uint32_t stream, int64_t bytes, double seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (window(stream) < bytes) {
    const std::chrono::duration<double> left = end - std::chrono::steady_clock::now();
    if (left.count() <= 0 || !ReadFrame(left.count())) break;
  }
  return window(stream) >= bytes;
}

int64_t RawCallClient::window(uint32_t stream) const {
  int64_t window = initial_window_;
  for (const auto& [of, bytes] : updates_) window += of == stream ? bytes : 0;
  return window;
}

std::string RawCallClient::Prefix(uint32_t bytes, bool compressed) {
  return std::string(1, compressed ? '\1' : '\0') + BigEndian(bytes);
}

}  // namespace goldfinch
