#include "coordinator/calls/wire_limits.h"

#include <malloc.h>

#include <string>

#include "coordinator/calls/request_limits.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "gtest/gtest.h"
#include "protos/contexts.pb.h"
#include "protos/generate.pb.h"

namespace goldfinch {
namespace {

template <typename Message>
absl::Status Check(const std::string& bytes) {
  google::protobuf::io::ArrayInputStream stream(bytes.data(), static_cast<int>(bytes.size()));
  return CheckWire(*Message::descriptor(), &stream);
}

template <typename Message>
std::string Refusal(const std::string& bytes) {
  const absl::Status status = Check<Message>(bytes);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  return std::string(status.message());
}

std::string Repeat(const std::string& text, int times) {
  std::string result;
  for (int i = 0; i < times; ++i) result += text;
  return result;
}

// A field of bytes.
std::string Field(int number, const std::string& bytes) {
  EXPECT_LT(bytes.size(), 128u);
  return std::string{static_cast<char>(number << 3 | 2), static_cast<char>(bytes.size())} + bytes;
}

TEST(WireLimits, WhatTheLimitsAllowPasses) {
  v1::GenerateRequest generate;
  generate.set_text(std::string(100'000, 'x'));
  for (int i = 0; i < kStopsMax; ++i) generate.add_stop("stop");
  for (int i = 0; i < kBansMax; ++i) generate.mutable_sampling()->add_banned_tokens(i);
  for (int i = 0; i < kBiasesMax; ++i) (*generate.mutable_sampling()->mutable_logit_bias())[i] = 1;
  EXPECT_TRUE(Check<v1::GenerateRequest>(generate.SerializeAsString()).ok());
  v1::ScoreRequest score;
  for (int i = 0; i < kContinuationsMax; ++i) score.add_continuations()->mutable_ids()->add_ids(i);
  EXPECT_TRUE(Check<v1::ScoreRequest>(score.SerializeAsString()).ok());
  v1::CreateContextRequest create;
  for (int i = 0; i < kBreakpointsMax; ++i) create.add_breakpoints(~uint64_t{0});
  EXPECT_TRUE(Check<v1::CreateContextRequest>(create.SerializeAsString()).ok());
  EXPECT_TRUE(Check<v1::TokenizeRequest>("").ok());
}

TEST(WireLimits, EntriesAreCountedBeforeTheyTakeMemory) {
  constexpr int kMany = 1'000'000;
  const std::string stops = Repeat(Field(7, ""), kMany);
  const std::string continuations = Repeat(Field(3, ""), kMany);
  const std::string sampling = Repeat(Field(5, Field(8, "\x08\x01")), kMany);      // spread over as many messages
  const std::string packed = "\x92\x01\xc0\x84\x3d" + std::string(kMany, '\x01');  // of a byte each
  const std::string numbers = Repeat(std::string("\x90\x01\x01"), kMany);
  const auto before = mallinfo2();
  EXPECT_EQ(Refusal<v1::GenerateRequest>(packed), "breakpoints has 100000 entries, the limit is 16");
  EXPECT_EQ(Refusal<v1::GenerateRequest>(numbers), "breakpoints has 1000000 entries, the limit is 16");
  EXPECT_EQ(Refusal<v1::GenerateRequest>(stops), "stop has 1000000 entries, the limit is 64");
  EXPECT_EQ(Refusal<v1::ScoreRequest>(continuations), "continuations has 1000000 entries, the limit is 64");
  EXPECT_EQ(Refusal<v1::GenerateRequest>(sampling), "logit_bias has 1000000 entries, the limit is 1024");
  const auto after = mallinfo2();
  EXPECT_LT(after.arena + after.hblkhd, before.arena + before.hblkhd + (1 << 20)) << "parsed, each takes over 40 MB";
}

TEST(WireLimits, UnknownFieldsAreCountedToo) {
  EXPECT_TRUE(Check<v1::TokenizeRequest>(Repeat(Field(15, "new"), 100)).ok());
  EXPECT_EQ(Refusal<v1::TokenizeRequest>(Repeat(Field(15, ""), 1000)),
            "the set of unknown fields has 1000 entries, the limit is 256");
  // Known fields of another wire type are kept among the unknown ones.
  EXPECT_FALSE(Check<v1::GenerateRequest>(Repeat(Field(3, ""), 1000)).ok());
  EXPECT_FALSE(Check<v1::TokenizeRequest>(Repeat(std::string("\x08\x00", 2), 1000)).ok());
  EXPECT_EQ(Refusal<v1::GetModelInfoRequest>(Repeat(std::string("\x08\x01", 2), 1000)),
            "the set of unknown fields has 1000 entries, the limit is 256");
  // A group could hold any number of them.
  EXPECT_EQ(Check<v1::TokenizeRequest>("\x7b" + Repeat(std::string("\x08\x01", 2), 1000) + "\x7c"),
            absl::DataLossError("the request is not a valid goldfinch.v1.TokenizeRequest message"));
}

TEST(WireLimits, BytesThatAreNoMessageAreRefused) {
  for (const std::string& bytes : {std::string("\xff\xff\xff\xff"), std::string("\x0a\x7f"), std::string("\0x", 2),
                                   Field(2, "\x0a\x05"), std::string("\x0a\xff\xff\xff\xff\x0f")}) {
    EXPECT_EQ(Check<v1::ScoreRequest>(bytes),
              absl::DataLossError("the request is not a valid goldfinch.v1.ScoreRequest message"));
  }
}

// Every field of the API that can multiply has a limit.
void ExpectLimits(const google::protobuf::Descriptor& type) {
  for (int i = 0; i < type.field_count(); ++i) {
    const google::protobuf::FieldDescriptor& field = *type.field(i);
    const bool is_message = field.cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_MESSAGE;
    const bool is_text = field.cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_STRING;
    const bool is_wide = field.cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_UINT64 ||
                         field.cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_INT64;
    if (field.is_repeated() && (is_message || is_text || is_wide)) {
      EXPECT_GT(WireEntriesMax(field), 0) << field.full_name();
    }
    if (is_message) ExpectLimits(*field.message_type());
  }
}

TEST(WireLimits, EveryRequestIsCovered) {
  for (const auto* file : {v1::GenerateRequest::descriptor()->file(), v1::CreateContextRequest::descriptor()->file()}) {
    const auto& service = *file->service(0);
    ASSERT_GT(service.method_count(), 0);
    for (int i = 0; i < service.method_count(); ++i) ExpectLimits(*service.method(i)->input_type());
  }
}

}  // namespace
}  // namespace goldfinch
