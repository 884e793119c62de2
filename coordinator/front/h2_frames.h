// HTTP/2 frames: their types, flags and error codes, and the few that are written here. For h2_guard alone.
#ifndef GOLDFINCH_COORDINATOR_FRONT_H2_FRAMES_H_
#define GOLDFINCH_COORDINATOR_FRONT_H2_FRAMES_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace goldfinch::h2 {

// What a client sends first.
inline constexpr std::string_view kPreface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
inline constexpr size_t kHeaderBytes = 9;

enum Type : uint8_t {
  kData = 0,
  kHeaders = 1,
  kPriority = 2,
  kReset = 3,
  kSettings = 4,
  kPushPromise = 5,
  kPing = 6,
  kGoAway = 7,
  kWindowUpdate = 8,
  kContinuation = 9,
};

// Flags.
inline constexpr uint8_t kEndStream = 1, kAck = 1, kEndHeaders = 4, kPadded = 8, kHasPriority = 32;
// Error codes.
inline constexpr uint32_t kNoError = 0, kProtocolError = 1, kFrameSizeError = 6, kCancel = 8, kEnhanceYourCalm = 11;

// The header of a frame.
struct Frame {
  uint32_t length = 0;
  uint8_t type = 0;
  uint8_t flags = 0;
  uint32_t stream = 0;
};

// `bytes` has at least kHeaderBytes.
Frame ParseHeader(std::string_view bytes);
// A number of as many bytes, the highest first.
uint32_t ReadNumber(std::string_view bytes);
// "DATA", or "frame of type 32".
std::string NameOf(uint8_t type);

void AppendReset(uint32_t stream, uint32_t code, std::string* text);
// More than a frame can grant is cut to what it can.
void AppendWindowUpdate(uint32_t stream, uint64_t bytes, std::string* text);
// The whole answer to a call that fails with the gRPC code, and a reset that stops the client from sending. The message
// is ASCII without '%', and is cut to 126 characters. Nothing of it depends on earlier headers.
void AppendFailure(uint32_t stream, int code, std::string_view message, std::string* text);
void AppendGoAway(uint32_t stream_last, uint32_t code, std::string_view reason, std::string* text);

}  // namespace goldfinch::h2

#endif  // GOLDFINCH_COORDINATOR_FRONT_H2_FRAMES_H_
