// Watches the HTTP/2 frames between one client and gRPC, so that only frames get to gRPC that cost it little.
#ifndef GOLDFINCH_COORDINATOR_FRONT_H2_GUARD_H_
#define GOLDFINCH_COORDINATOR_FRONT_H2_GUARD_H_

#include <cstddef>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/token_bucket.h"
#include "coordinator/front/front_options.h"

namespace goldfinch {

namespace h2 {
struct Frame;
}

// Where a guard asks for room for calls, and for the bytes of those that are not complete. It belongs to one
// connection.
class CallBudget {
 public:
  virtual ~CallBudget() = default;
  // RESOURCE_EXHAUSTED names the limit, in a few words of ASCII. After OK, CloseCall follows.
  virtual absl::Status OpenCall() = 0;
  virtual void CloseCall() = 0;
  // These bytes have come already.
  virtual void Take(int64_t bytes) = 0;
  // False if there is no room: H2Guard::Retry is to be called when there is.
  virtual bool Reserve(int64_t bytes) = 0;
  virtual void Release(int64_t bytes) = 0;
  // What Reserve refused is no longer waited for. Does nothing if nothing is.
  virtual void Withdraw() {}
};

// Passes frames on in both directions. It never changes one, but it
// - passes every frame of the client but DATA whole, and none that is against the rules or the limits;
// - withholds the window updates of a stream whose message waits for room;
// - ends a call that is one too many, or whose message is too long, which gRPC would see only when all of it had come,
//   or makes no progress although the server lets the client send.
// Pure: it has no sockets, no clock and no threads; `now` is in seconds and never goes back. Time is linear in the
// bytes, memory bounded by streams_max. What is left of a frame that is not whole is the caller's to keep: it is at
// most kFrameBytesMax, unless resume_at() says that whole frames wait; then it is at most what one call was given.
class H2Guard {
 public:
  // gRPC announces no larger frames and windows as long as its bandwidth probe is off.
  static constexpr size_t kPayloadBytesMax = 16384;
  static constexpr size_t kFrameBytesMax = 9 + kPayloadBytesMax;
  static constexpr int64_t kStreamWindow = 65535;

  H2Guard(const FrontLimits& limits, CallBudget* budget, double now);
  ~H2Guard();  // releases what it holds
  H2Guard(const H2Guard&) = delete;
  H2Guard& operator=(const H2Guard&) = delete;

  // Appends to `to_server` what may pass of the client's `bytes`, and returns how many of them it has consumed. The
  // rest, the beginning of a frame, must come again with more bytes behind it. An error says what is wrong; nothing may
  // be passed on after it, and GoAway makes the frame that tells the client.
  absl::StatusOr<size_t> FromClient(std::string_view bytes, double now, std::string* to_server);
  // What FromClient has left holds whole frames that must wait, so that many of them do not keep gRPC from others'
  // calls: it is to be called again with the same bytes at this time, and not before. -1: nothing waits.
  double resume_at() const { return resume_at_; }
  // As FromClient, in the other direction. gRPC is trusted to send whole frames in the end.
  size_t FromServer(std::string_view bytes, std::string* to_client);
  // To be called every second or so. An error is as that of FromClient.
  absl::Status Tick(double now, std::string* to_server, std::string* to_client);
  // To be called when there is room again.
  void Retry(double now, std::string* to_client);
  // For so long, bytes of the client have not been read, because the server was full or because of resume_at(). Frames
  // and messages have as much more time.
  void Excuse(double seconds) { excused_seconds_ += seconds; }

  // The last frame that tells the client why the connection ends; nothing if it cannot be told, because a frame is half
  // written.
  std::string GoAway(const absl::Status& reason) const;

  // The client has sent the preface and its settings.
  bool open() const { return opened_; }
  int64_t streams_expired() const { return streams_expired_; }  // that Tick has ended
  int64_t streams_refused() const { return streams_refused_; }  // because there was no room for the call
  int64_t parked_bytes() const { return parked_bytes_; }        // that count against connection_bytes_max
  size_t streams() const { return streams_.size(); }

 private:
  struct Stream {
    bool client_done = false;
    bool awaited = true;   // its message has begun and is not complete, or none has come yet
    bool waiting = false;  // for room for its message
    bool too_long = false;
    bool answered = false;  // the server has sent headers
    int prefix_bytes = 0;   // that have come of the five before a message
    uint32_t length = 0;    // from the prefix
    int64_t left = 0;       // of the message
    int64_t received = 0;   // of the message, with its prefix
    int64_t reserved = 0;   // for the message; 0: it is counted as it comes
    int64_t done = 0;       // of complete messages that the server has not answered to
    uint64_t withheld = 0;
    int64_t window = kStreamWindow;  // what the client may still send, without what is withheld
    int64_t progress = 0;            // bytes since `checked_at`
    double checked_at = 0;           // by ClientTime
  };
  using Streams = absl::flat_hash_map<uint32_t, Stream>;

  absl::Status CheckPreface(std::string_view* bytes, std::string* to_server);
  // What can be said of a frame's header alone, before any of its payload has come.
  absl::Status CheckLayout(const h2::Frame& frame) const;
  absl::Status CheckContinuation(const h2::Frame& frame) const;
  absl::Status CheckRate(const h2::Frame& frame, double now);
  absl::Status CheckData(const h2::Frame& frame) const;
  absl::Status BeginHeaders(const h2::Frame& frame, double now);
  absl::Status BeginCall(uint32_t id, double now);
  // Looks at a whole frame that is not DATA.
  absl::Status CheckFrame(const h2::Frame& frame, std::string_view payload, double now);

  // `lead` is the byte with the length of the padding, if there is one.
  absl::Status BeginData(const h2::Frame& frame, std::string_view lead, double now);
  absl::Status PassData(std::string_view bytes, double now, std::string* to_server);
  absl::Status EndData(double now);
  // Counts bytes of messages.
  void TakeBody(uint32_t id, Stream& stream, std::string_view bytes, double now);
  void BeginMessage(uint32_t id, Stream& stream);
  void EndMessage(uint32_t id, Stream& stream);
  void EndClient(uint32_t id, Stream& stream);
  void Answered(uint32_t id);  // the server has sent something on the stream
  void Erase(uint32_t id);
  // Ends a stream for both sides, with RESOURCE_EXHAUSTED for the client.
  void Fail(uint32_t id, const std::string& message);
  // The frames of Fail. `answered`: the client has got headers of an answer.
  void AppendEnds(uint32_t id, bool answered, const std::string& message);
  // What the budget and connection_bytes_max see of a stream.
  static int64_t Held(const Stream& stream);
  static int64_t Parked(const Stream& stream) { return stream.received + stream.done; }
  void SetAwaited(Stream& stream, bool awaited);
  // Calls the budget for what has changed since `held` and `parked`.
  void Settle(const Stream& stream, int64_t held, int64_t parked);
  void StopWaiting(uint32_t id, Stream& stream);
  // Ends the calls whose messages make no progress. `time` is ClientTime.
  absl::Status ExpireMessages(double time);
  // Whether flow control keeps the client from sending more of the stream's message.
  bool HeldUp(uint32_t id, const Stream& stream) const;
  // Whether a frame has to wait now; sets resume_at_.
  bool MustWait(const h2::Frame& frame, double now);
  // What has gone by for the client, in seconds.
  double ClientTime(double now) const { return now - excused_seconds_; }
  // Appends the frames of our own if the last frame is whole.
  void FlushToServer(std::string* to_server);
  void FlushToClient(std::string* to_client);

  // The most bytes of the guard's own answers that the client has not been sent. Honest clients cause far fewer.
  static constexpr size_t kOwnBytesMax = size_t{1} << 20;

  const FrontLimits limits_;
  CallBudget* const budget_;

  // ---- The client's direction ----
  size_t preface_bytes_ = 0;  // that have come
  bool opened_ = false;
  uint32_t stream_last_ = 0;    // the highest that the client has opened
  uint32_t header_stream_ = 0;  // whose header block is not complete; 0: none
  int64_t header_block_bytes_ = 0;
  int continuations_ = 0;
  uint32_t data_stream_ = 0;
  size_t data_left_ = 0;  // bytes of a DATA frame that are still to come, padding included
  size_t data_padding_ = 0;
  size_t data_bytes_ = 0;  // of the whole frame, without padding
  bool data_ends_stream_ = false;
  bool data_begins_message_ = false;  // some clients send the prefix of a message in a frame of its own
  // When the frame or header block that is not complete has begun, by ClientTime; -1: there is none.
  double frame_began_at_ = -1;
  double excused_seconds_ = 0;
  int64_t window_ = kStreamWindow;  // of the connection: what the client may still send
  std::string for_server_;          // frames of our own that wait for the end of the client's frame

  // ---- The server's direction ----
  size_t server_left_ = 0;           // bytes of a frame that are still to come
  bool server_header_open_ = false;  // a header block is not complete
  int pings_open_ = 0;               // of the server that the client has not answered
  std::string for_client_;           // frames of our own that wait for the end of the server's frame

  // ---- Both ----
  Streams streams_;  // open
  std::set<uint32_t> waiting_;
  int64_t awaited_streams_ = 0;
  int64_t parked_bytes_ = 0;
  int64_t streams_expired_ = 0;
  int64_t streams_refused_ = 0;
  double resume_at_ = -1;
  TokenBucket resets_, reset_pace_, settings_, pings_, priorities_, short_data_, window_updates_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_FRONT_H2_GUARD_H_
