#include "coordinator/front/h2_frames.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace goldfinch::h2 {
namespace {

constexpr const char* kTypeNames[] = {"DATA",         "HEADERS", "PRIORITY", "RST_STREAM",    "SETTINGS",
                                      "PUSH_PROMISE", "PING",    "GOAWAY",   "WINDOW_UPDATE", "CONTINUATION"};

void AppendNumber(uint32_t value, int bytes, std::string* text) {
  for (int shift = 8 * (bytes - 1); shift >= 0; shift -= 8) text->push_back(static_cast<char>(value >> shift));
}

void AppendHeader(uint8_t type, uint32_t stream, size_t length, std::string* text) {
  AppendNumber(static_cast<uint32_t>(length), 3, text);
  text->push_back(static_cast<char>(type));
  text->push_back(0);
  AppendNumber(stream, 4, text);
}

}  // namespace

Frame ParseHeader(std::string_view bytes) {
  return {.length = ReadNumber(bytes.substr(0, 3)),
          .type = static_cast<uint8_t>(bytes[3]),
          .flags = static_cast<uint8_t>(bytes[4]),
          .stream = ReadNumber(bytes.substr(5, 4)) & 0x7fffffff};
}

uint32_t ReadNumber(std::string_view bytes) {
  uint32_t value = 0;
  for (const char byte : bytes) value = value << 8 | static_cast<uint8_t>(byte);
  return value;
}

std::string NameOf(uint8_t type) {
  return type <= kContinuation ? kTypeNames[type] : absl::StrCat("frame of type ", static_cast<int>(type));
}

void AppendReset(uint32_t stream, uint32_t code, std::string* text) {
  AppendHeader(kReset, stream, 4, text);
  AppendNumber(code, 4, text);
}

void AppendWindowUpdate(uint32_t stream, uint64_t bytes, std::string* text) {
  constexpr uint64_t kMost = 0x7fffffff;
  AppendHeader(kWindowUpdate, stream, 4, text);
  AppendNumber(static_cast<uint32_t>(std::min(bytes, kMost)), 4, text);
}

void AppendGoAway(uint32_t stream_last, uint32_t code, std::string_view reason, std::string* text) {
  AppendHeader(kGoAway, 0, 8 + reason.size(), text);
  AppendNumber(stream_last, 4, text);
  AppendNumber(code, 4, text);
  text->append(reason);
}

}  // namespace goldfinch::h2
