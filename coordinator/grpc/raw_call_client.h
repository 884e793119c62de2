// An HTTP/2 client for tests that sends what no library would send, and keeps count of what the server allows it.
#ifndef GOLDFINCH_COORDINATOR_GRPC_RAW_CALL_CLIENT_H_
#define GOLDFINCH_COORDINATOR_GRPC_RAW_CALL_CLIENT_H_

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace goldfinch {

// One connection in plain text to a port of this machine, with one call at least: stream 1. A server that does not do
// what a test waits for makes the test run into its time limit.
class RawCallClient {
 public:
  using Headers = std::vector<std::pair<std::string, std::string>>;

  explicit RawCallClient(int port);
  ~RawCallClient();
  RawCallClient(const RawCallClient&) = delete;
  RawCallClient& operator=(const RawCallClient&) = delete;

  // Begins a call of the public service with `more` headers.
  void Begin(uint32_t stream, const std::string& method, const Headers& more = {});
  // Sends bytes of the body, whatever the window is.
  void Send(uint32_t stream, const std::string& bytes, bool end = false);
  // Lets the server send so many bytes more.
  void Allow(uint32_t stream, uint32_t bytes);

  // The status of the connection's first call that has ended; waits for it.
  int WaitStatus();
  // Reads what has come, for at most `seconds`, until the stream may send at least `bytes` in all. Returns whether it
  // may.
  bool WaitWindow(uint32_t stream, int64_t bytes, double seconds);
  // How many bytes the server has let the stream send in all, by what has been read.
  int64_t window(uint32_t stream) const;

  // The five bytes before a message.
  static std::string Prefix(uint32_t bytes, bool compressed = false);

 private:
  void Frame(int type, int flags, uint32_t stream, const std::string& payload);
  // Reads a frame, for at most `seconds`. False if none comes.
  bool ReadFrame(double seconds);

  int fd_;
  std::string input_;
  std::optional<int> status_;
  bool closed_ = false;
  int64_t initial_window_ = 65535;
  std::vector<std::pair<uint32_t, int64_t>> updates_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_GRPC_RAW_CALL_CLIENT_H_
