// A client of sockets and bytes, for tests. Every wait ends after 20 seconds at most.
#ifndef GOLDFINCH_COORDINATOR_FRONT_RAW_CLIENT_H_
#define GOLDFINCH_COORDINATOR_FRONT_RAW_CLIENT_H_

#include <cstddef>
#include <string>

struct ssl_st;      // SSL
struct ssl_ctx_st;  // SSL_CTX

namespace goldfinch {

// Reads at least `bytes`, or what comes before the end or the time limit.
std::string ReadFrom(int fd, size_t bytes);

class RawClient {
 public:
  RawClient() = default;
  // Connects, and checks that it can.
  explicit RawClient(int port, const std::string& host = "127.0.0.1");
  ~RawClient();
  RawClient(RawClient&& other) noexcept;
  RawClient& operator=(RawClient&&) = delete;

  // Whether the handshake was good. A server's certificate is not verified.
  bool StartTls();
  // The name of the server's certificate.
  std::string ServerName() const;

  // False once the connection is broken, or when nothing has been taken for `seconds`.
  bool Send(const std::string& bytes, double seconds = 20);
  // At least `bytes`, or what comes before the end or the time limit.
  std::string Read(size_t bytes);
  // Everything until the connection ends. `ended` says whether it did within the time.
  std::string ReadToEnd(bool* ended, double seconds = 20);
  void EndWriting();
  void Close();
  int fd() const { return fd_; }

 private:
  int fd_ = -1;
  ssl_ctx_st* context_ = nullptr;
  ssl_st* tls_ = nullptr;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_FRONT_RAW_CLIENT_H_
