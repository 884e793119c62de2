#include "clients/cli/load_test/load_test_scenario_file.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "clients/cli/terminal/terminal.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kChat[] = R"(name: "chat"
# Users and one hog.
groups {
  name: "users"
  clients: 8
  requests: 4
  prompt_tokens: 500
}
groups { name: "hog" background: true until_others_end: true prompt_tokens: 100 n: 64 rate: 0.5 }
aims { group: "users" measure: TIME_TO_FIRST_TOKEN_P99 at_most_times_quiet: 3 }
variants {
  name: "small"
  groups { name: "users" clients: 2 seconds: 1.5 }
  aims { group: "hog" measure: INTER_TOKEN_P50 at_most_ms: 20 }
}
)";

// What the text is refused with.
std::string Refusal(const std::string& text, const std::string& variant = "") {
  const auto scenario = ParseScenario("f", text, variant);
  EXPECT_TRUE(absl::IsInvalidArgument(scenario.status())) << text << scenario.status();
  return std::string(scenario.status().message());
}

// kChat with one text in place of another.
std::string Changed(const std::string& what, const std::string& with) {
  std::string text = kChat;
  EXPECT_NE(text.find(what), std::string::npos) << what;
  return text.replace(text.find(what), what.size(), with);
}

TEST(ScenarioFileTest, FieldsAndTheirDefaults) {
  const auto scenario = ParseScenario("f", kChat, "");
  ASSERT_TRUE(scenario.ok()) << scenario.status();
  EXPECT_EQ(scenario->name(), "chat");
  ASSERT_EQ(scenario->groups_size(), 2);
  const scenario::ClientGroup& users = scenario->groups(0);
  EXPECT_EQ(users.clients(), 8);
  EXPECT_EQ(users.requests(), 4);
  EXPECT_EQ(users.max_tokens(), 64);
  EXPECT_EQ(users.n(), 1);
  EXPECT_EQ(users.quiet_requests(), 4);
  EXPECT_FALSE(users.background());
  EXPECT_FALSE(users.until_others_end());
  const scenario::ClientGroup& hog = scenario->groups(1);
  EXPECT_EQ(hog.clients(), 1);
  EXPECT_EQ(hog.rate(), 0.5);
  EXPECT_TRUE(hog.until_others_end());
  EXPECT_EQ(scenario->aims(0).at_most_times_quiet(), 3);
  EXPECT_EQ(scenario->variants_size(), 0);
}

TEST(ScenarioFileTest, AVariantChangesWhatItSetsOnly) {
  const auto scenario = ParseScenario("f", kChat, "small");
  ASSERT_TRUE(scenario.ok()) << scenario.status();
  const scenario::ClientGroup& users = scenario->groups(0);
  EXPECT_EQ(users.clients(), 2);
  EXPECT_EQ(users.prompt_tokens(), 500);
  EXPECT_EQ(users.seconds(), 1.5);
  EXPECT_FALSE(users.has_requests());
  EXPECT_EQ(scenario->groups(1).n(), 64);
  ASSERT_EQ(scenario->aims_size(), 1);
  EXPECT_EQ(scenario->aims(0).at_most_ms(), 20);
  const auto unknown = ParseScenario("f", kChat, "smal");
  EXPECT_EQ(ExitCode(unknown.status()), 2);
  EXPECT_EQ(unknown.status().message(), "f: has no variant \"smal\"; its variants: small");
}

TEST(ScenarioFileTest, ErrorsOfTheFormatNameTheLineAndTheField) {
  EXPECT_THAT(Refusal(Changed("clients: 8", "client: 8")), StartsWith("f:5:"));
  EXPECT_THAT(Refusal(Changed("clients: 8", "client: 8")), HasSubstr("\"client\""));
  EXPECT_THAT(Refusal(Changed("clients: 8", "clients: 8.5")), StartsWith("f:5:"));
  EXPECT_THAT(Refusal(Changed("clients: 8", "clients: 99999999999999999999")), StartsWith("f:5:"));
  EXPECT_THAT(Refusal(Changed("requests: 4", "requests: 4 seconds: 2")), HasSubstr("\"seconds\""));
  EXPECT_THAT(Refusal(Changed("TIME_TO_FIRST_TOKEN_P99", "P99")), HasSubstr("measure"));
  EXPECT_THAT(Refusal("name"), StartsWith("f:1:"));
  EXPECT_THAT(Refusal(std::string(100, '{')), StartsWith("f:1:"));
}

TEST(ScenarioFileTest, ErrorsOfValuesNameTheLineAndTheField) {
  EXPECT_EQ(Refusal(Changed("clients: 8", "clients: 0")),
            "f:5: group \"users\": clients is 0, it may be from 1 to 4096");
  EXPECT_EQ(Refusal(Changed("seconds: 1.5", "seconds: 0")),
            "f:13: variant \"small\": group \"users\": seconds is 0, it may be above 0 and at most 1000000");
  for (const auto& [what, with] : std::vector<std::pair<std::string, std::string>>{
           {"requests: 4", "requests: 1000001"},
           {"requests: 4", "seconds: nan"},
           {"prompt_tokens: 500", "prompt_tokens: 4194305"},
           {"n: 64", "n: 65"},
           {"n: 64", "priority: 101"},
           {"n: 64", "start_seconds: -1"},
           {"rate: 0.5", "rate: 0"},
           {"rate: 0.5", "think_seconds: inf"},
           {"rate: 0.5", "burst_every_seconds: 0"},
           {"n: 64", "max_tokens: 0"},
           {"n: 64", "quiet_requests: 0"},
           {"at_most_times_quiet: 3", "at_most_times_quiet: 0.5"},
           {"at_most_times_quiet: 3", "at_most_ms: 0"},
       }) {
    EXPECT_THAT(Refusal(Changed(what, with)), HasSubstr(with.substr(0, with.find(':')) + " is ")) << with;
  }
}

TEST(ScenarioFileTest, NamesAreShortAndDifferent) {
  EXPECT_THAT(Refusal(""), StartsWith("f: name is \"\""));
  EXPECT_THAT(Refusal(Changed("name: \"chat\"", "name: \"a b\"")), StartsWith("f:1: name is \"a b\""));
  EXPECT_THAT(Refusal(Changed("name: \"hog\"", "name: \"users\"")), HasSubstr("another group"));
  EXPECT_THAT(Refusal(Changed("name: \"hog\"", "name: \"" + std::string(65, 'x') + "\"")), HasSubstr("1 to 64"));
  EXPECT_THAT(Refusal(std::string(kChat) + "variants { name: \"small\" }"), HasSubstr("another variant"));
}

TEST(ScenarioFileTest, FieldsThatDoNotGoTogether) {
  EXPECT_THAT(Refusal("name: \"a\""), HasSubstr("groups is empty"));
  EXPECT_THAT(Refusal(Changed("prompt_tokens: 500", "")), HasSubstr("f:3: group \"users\": prompt_tokens is missing"));
  EXPECT_THAT(Refusal(Changed("prompt_tokens: 500", "prompt_tokens: 5 shared_prompt_tokens: 5")),
              HasSubstr("below prompt_tokens"));
  EXPECT_THAT(Refusal(Changed("rate: 0.5", "rate: 0.5 clients: 2")), HasSubstr("a group with a rate has one"));
  EXPECT_THAT(Refusal(Changed("requests: 4", "until_others_end: true")), HasSubstr("none would end"));
  EXPECT_THAT(Refusal(Changed("requests: 4", "until_others_end: false")), HasSubstr("can only be true"));
  EXPECT_THAT(Refusal(Changed("clients: 8\n  requests: 4\n  prompt_tokens: 500", "clients: 4000 prompt_tokens: 50000")),
              HasSubstr("the limit for all of them is 134217728"));
  EXPECT_THAT(Refusal(Changed("aims { group: \"users\"", "aims { group: \"nobody\"")), HasSubstr("\"nobody\""));
  EXPECT_THAT(Refusal(Changed("aims { group: \"users\"", "aims { group: \"hog\"")), HasSubstr("a background has not"));
  EXPECT_THAT(Refusal(Changed("at_most_times_quiet: 3", "")), HasSubstr("at_most_ms is missing"));
  EXPECT_THAT(Refusal(Changed("measure: TIME_TO_FIRST_TOKEN_P99", "")), HasSubstr("measure is missing"));
  EXPECT_THAT(Refusal(Changed("groups { name: \"users\" clients: 2", "groups { name: \"user\" clients: 2")),
              HasSubstr("f:11: variant \"small\": groups has \"user\", which the scenario has not"));
}

TEST(ScenarioFileTest, ReadsFilesOfABoundedSize) {
  EXPECT_TRUE(absl::IsNotFound(ReadScenario("no/such/file", "").status()));
  for (const char* name : {"bursts", "hogs", "long-contexts", "long-prompt", "many-users", "million-tokens"}) {
    const std::string path = std::string("tests/cluster/scenarios/") + name + ".textproto";
    for (const char* variant : {"", "small"}) {
      const auto scenario = ReadScenario(path, variant);
      ASSERT_TRUE(scenario.ok()) << scenario.status();
      EXPECT_EQ(scenario->name(), name);
    }
  }
}

}  // namespace
}  // namespace goldfinch
