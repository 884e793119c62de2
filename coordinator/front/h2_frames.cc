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

void AppendHeader(uint8_t type, uint32_t stream, size_t length, std::string* text, uint8_t flags = 0) {
  AppendNumber(static_cast<uint32_t>(length), 3, text);
  text->push_back(static_cast<char>(type));
  text->push_back(static_cast<char>(flags));
  AppendNumber(stream, 4, text);
}

// A header that is written out. Name and value have at most 126 characters, so that their lengths take a byte each.
void AppendField(std::string_view name, std::string_view value, std::string* block) {
  block->push_back(0);
  for (const std::string_view part : {name, value}) {
    block->push_back(static_cast<char>(part.size()));
    block->append(part);
  }
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

void AppendFailure(uint32_t stream, int code, std::string_view message, std::string* text) {
  std::string block = "\x88";  // :status 200, from the static table
  AppendField("content-type", "application/grpc", &block);
  AppendField("grpc-status", std::to_string(code), &block);
  AppendField("grpc-message", message.substr(0, 126), &block);
  AppendHeader(kHeaders, stream, block.size(), text, kEndHeaders | kEndStream);
  text->append(block);
  AppendReset(stream, kNoError, text);
}

void AppendGoAway(uint32_t stream_last, uint32_t code, std::string_view reason, std::string* text) {
  AppendHeader(kGoAway, 0, 8 + reason.size(), text);
  AppendNumber(stream_last, 4, text);
  AppendNumber(code, 4, text);
  text->append(reason);
}

}  // namespace goldfinch::h2
