// Adds flags to a command, each under a heading of its help.
#ifndef GOLDFINCH_CLIENTS_CLI_FLAGS_FLAG_GROUP_H_
#define GOLDFINCH_CLIENTS_CLI_FLAGS_FLAG_GROUP_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace goldfinch {

// The headings of `goldfinch COMMAND --help`, in the order in which they are printed.
inline constexpr char kModelFlags[] = "model";
inline constexpr char kPromptFlags[] = "prompt";
inline constexpr char kContextFlags[] = "context";
inline constexpr char kPipelineFlags[] = "pipeline";
inline constexpr char kDeviceFlags[] = "device";
inline constexpr char kMemoryFlags[] = "memory";
inline constexpr char kNetworkFlags[] = "network";
inline constexpr char kSecurityFlags[] = "security";
inline constexpr char kTimeoutFlags[] = "timeouts";
inline constexpr char kSamplingFlags[] = "sampling";
inline constexpr char kLoadFlags[] = "load";
inline constexpr char kOutputFlags[] = "output";
inline constexpr char kOtherFlags[] = "Options";  // CLI11's name for what --help stands under; printed as "other"
inline constexpr const char* kFlagHeadings[] = {
    kModelFlags,    kPromptFlags,  kContextFlags,  kPipelineFlags, kDeviceFlags, kMemoryFlags, kNetworkFlags,
    kSecurityFlags, kTimeoutFlags, kSamplingFlags, kLoadFlags,     kOutputFlags, kOtherFlags};

// A number as people read it: "65536", "1,048,576", "0.01".
std::string ReadableNumber(double number);
std::string ReadableNumber(int64_t number);

// "PHRASE, WORDS; REMARK" for "PHRASE; REMARK".
std::string AfterPhrase(const std::string& help, const std::string& words);

// "PHRASE, 1 to 65536; REMARK" for "PHRASE; REMARK".
template <typename Number>
std::string WithRange(const std::string& help, Number least, Number most) {
  using Widest = std::conditional_t<std::is_floating_point_v<Number>, double, int64_t>;
  return AfterPhrase(help, absl::StrCat(ReadableNumber(static_cast<Widest>(least)), " to ",
                                        ReadableNumber(static_cast<Widest>(most))));
}

// CLI11's checks: each returns what is wrong with the text, or nothing.
using FlagCheck = std::function<std::string(const std::string& text)>;

// A whole number within the range, read as 64 bits: CLI11 alone would wrap what is too large.
template <typename Integer>
FlagCheck InRange(Integer least, Integer most) {
  return [least, most](const std::string& text) {
    std::conditional_t<std::is_signed_v<Integer>, int64_t, uint64_t> number = 0;
    const bool good = absl::SimpleAtoi(text, &number) && number >= least && number <= most;
    return good ? "" : absl::StrCat(text, " is not a whole number from ", least, " to ", most);
  };
}
// The same check for doubles; it refuses NaN.
FlagCheck InRange(double least, double most);
FlagCheck OneOf(std::vector<std::string> choices);

inline constexpr double kSecondsMax = 1e7;  // four months: fits every clock

// The flags of one command under one heading. Each function adds a flag with its help: a phrase, after which a remark
// may follow a semicolon. HelpFormatter adds the value's default.
class FlagGroup {
 public:
  // `heading`: one of kFlagHeadings.
  FlagGroup(CLI::App& command, const char* heading) : command_(command), heading_(heading) {}

  // `type` stands for the value, as in "--model PATH".
  template <typename Value>
  CLI::Option* Text(const std::string& names, Value& value, const char* type, const std::string& help) {
    return command_.add_option(names, value, help)->group(heading_)->type_name(type);
  }
  // May be given several times.
  template <typename Value>
  CLI::Option* Several(const std::string& names, std::vector<Value>& values, const char* type,
                       const std::string& help) {
    return command_.add_option(names, values, help + "; may be given several times")
        ->group(heading_)
        ->option_text(type)
        ->allow_extra_args(false);
  }
  // A whole number, whose limits are added to the phrase.
  template <typename Integer>
  CLI::Option* InLimits(const std::string& names, Integer& value, const char* type, const std::string& help,
                        std::type_identity_t<Integer> least, std::type_identity_t<Integer> most) {
    return command_.add_option(names, value, WithRange(help, least, most))
        ->group(heading_)
        ->type_name(type)
        ->check(InRange(least, most))
        ->capture_default_str();
  }
  // A number without limits of its own: the caller adds a check, or what the value is given to checks it.
  template <typename Number>
  CLI::Option* Unchecked(const std::string& names, Number& value, const char* type, const std::string& help) {
    return command_.add_option(names, value, help)->group(heading_)->type_name(type)->capture_default_str();
  }
  CLI::Option* Choice(const std::string& names, std::string& value, const std::vector<std::string>& choices,
                      const std::string& help);
  // Whole numbers with a unit, such as 64MiB or 4GiB. All units are powers of 1024, GB like GiB.
  CLI::Option* Bytes(const std::string& names, int64_t& value, const std::string& help);
  // From `least` to kSecondsMax.
  CLI::Option* Seconds(const std::string& names, double& value, const std::string& help, double least = 0.01);
  CLI::Option* Switch(const std::string& names, bool& value, const std::string& help) {
    return command_.add_flag(names, value, help)->group(heading_);
  }

 private:
  CLI::App& command_;
  const char* heading_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_FLAGS_FLAG_GROUP_H_
