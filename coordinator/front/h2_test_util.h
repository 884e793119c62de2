// HTTP/2 frames as bytes, for tests.
#ifndef GOLDFINCH_COORDINATOR_FRONT_H2_TEST_UTIL_H_
#define GOLDFINCH_COORDINATOR_FRONT_H2_TEST_UTIL_H_

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "coordinator/front/h2_frames.h"

namespace goldfinch {

inline std::string Number(uint64_t value, int bytes) {
  std::string text;
  for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8) text.push_back(static_cast<char>(value >> shift));
  return text;
}

// `length` need not be that of the payload.
inline std::string FrameHeader(uint32_t length, uint8_t type, uint8_t flags, uint32_t stream) {
  return Number(length, 3) + Number(type, 1) + Number(flags, 1) + Number(stream, 4);
}

inline std::string MakeFrame(uint8_t type, uint8_t flags, uint32_t stream, std::string_view payload) {
  return FrameHeader(static_cast<uint32_t>(payload.size()), type, flags, stream).append(payload);
}

// What a client begins with: the preface and empty settings.
inline std::string Opening() { return std::string(h2::kPreface) + MakeFrame(h2::kSettings, 0, 0, ""); }

// A header of a header block, without indexing.
inline std::string HeaderField(std::string_view name, std::string_view value) {
  return std::string(1, '\0') + Number(name.size(), 1).append(name) + Number(value.size(), 1).append(value);
}

// The header block of a call.
inline std::string CallHeaders(std::string_view path) {
  return HeaderField(":method", "POST") + HeaderField(":scheme", "http") + HeaderField(":path", path) +
         HeaderField(":authority", "test") + HeaderField("te", "trailers") +
         HeaderField("content-type", "application/grpc");
}

inline std::string OpenStream(uint32_t stream, std::string_view path = "/s/m") {
  return MakeFrame(h2::kHeaders, h2::kEndHeaders, stream, CallHeaders(path));
}

// What comes before a message of as many bytes.
inline std::string Prefix(uint32_t length) { return Number(0, 1) + Number(length, 4); }

// DATA frames of at most 16 KiB.
inline std::string Data(uint32_t stream, std::string_view bytes, bool end) {
  std::string frames;
  do {
    const std::string_view part = bytes.substr(0, 16384);
    bytes.remove_prefix(part.size());
    frames += MakeFrame(h2::kData, end && bytes.empty() ? h2::kEndStream : 0, stream, part);
  } while (!bytes.empty());
  return frames;
}

struct TestFrame {
  uint8_t type = 0;
  uint8_t flags = 0;
  uint32_t stream = 0;
  std::string payload;
};

// The whole frames of `bytes`.
inline std::vector<TestFrame> FramesOf(std::string_view bytes) {
  std::vector<TestFrame> frames;
  while (bytes.size() >= h2::kHeaderBytes) {
    const h2::Frame header = h2::ParseHeader(bytes);
    if (bytes.size() < h2::kHeaderBytes + header.length) break;
    frames.push_back(
        {header.type, header.flags, header.stream, std::string(bytes.substr(h2::kHeaderBytes, header.length))});
    bytes.remove_prefix(h2::kHeaderBytes + header.length);
  }
  return frames;
}

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_FRONT_H2_TEST_UTIL_H_
