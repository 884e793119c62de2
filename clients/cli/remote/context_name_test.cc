#include "clients/cli/remote/context_name.h"

#include <string>

#include "clients/cli/terminal/terminal.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/generate.pb.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;

TEST(ContextNameTest, NamesAndTokens) {
  const struct {
    const char* text;
    const char* name;
    std::optional<uint64_t> tokens;
  } cases[] = {
      {"book", "book", std::nullopt},       {"book@1000", "book", 1000},
      {"a@7@", "a@7", std::nullopt},        {"a@7@9", "a@7", 9},
      {"me@home", "me@home", std::nullopt}, {"x@18446744073709551615", "x", UINT64_MAX},
  };
  for (const auto& one : cases) {
    const absl::StatusOr<ContextReference> parsed = ParseContextName("--context", one.text);
    ASSERT_TRUE(parsed.ok()) << one.text << parsed.status();
    EXPECT_EQ(parsed->name, one.name) << one.text;
    EXPECT_EQ(parsed->tokens, one.tokens) << one.text;
  }
}

TEST(ContextNameTest, ErrorsNameTheFlagAndTheValue) {
  for (const std::string text : {"", "@", "@5", "book@0", "book@18446744073709551616"}) {
    const absl::Status status = ParseContextName("--context", text).status();
    EXPECT_EQ(ExitCode(status), 2) << text;
    EXPECT_THAT(std::string(status.message()), HasSubstr("--context is \"" + text + "\"")) << text;
  }
}

TEST(ContextNameTest, WhatIsNotGivenIsNotSet) {
  v1::KeepAs message = ToMessage({.name = "book"});
  EXPECT_EQ(message.name(), "book");
  EXPECT_FALSE(message.has_expire_after_seconds());
  message = ToMessage({.name = "book", .expire_after_seconds = 60, .replace = "v1"});
  EXPECT_EQ(message.expire_after_seconds(), 60);
  EXPECT_EQ(message.etag(), "v1");
}

}  // namespace
}  // namespace goldfinch
