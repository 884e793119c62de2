#include "clients/cli/flags/flag_group.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/units.h"

namespace goldfinch {
namespace {

constexpr int64_t kBytesMax = int64_t{1} << 50;  // 1 PiB

// Replaces a number with a unit by the number of bytes. All units are powers of 1024.
std::string ReadBytes(std::string& text) {
  const std::string given = text;
  try {
    return CLI::AsSizeValue(/*kb_is_1000=*/false)(text);
  } catch (const CLI::ValidationError&) {
    return given + " is not a number of bytes, such as 64MiB or 4GiB";
  }
}

}  // namespace

std::string ReadableNumber(int64_t number) {
  constexpr int64_t kWithCommas = 100'000;  // ports are smaller
  return std::abs(number) < kWithCommas ? absl::StrCat(number) : WithCommas(number);
}

std::string ReadableNumber(double number) {
  const auto whole = static_cast<int64_t>(number);
  return static_cast<double>(whole) == number ? ReadableNumber(whole) : absl::StrFormat("%.15g", number);
}

std::string AfterPhrase(const std::string& help, const std::string& words) {
  const size_t end = std::min(help.find(';'), help.size());
  return absl::StrCat(help.substr(0, end), ", ", words, help.substr(end));
}

FlagCheck InRange(double least, double most) {
  return [least, most](const std::string& text) {
    double number = 0;
    // Written so that NaN is refused.
    const bool good = absl::SimpleAtod(text, &number) && number >= least && number <= most;
    return good ? "" : absl::StrFormat("%s is not a number from %.15g to %.15g", text, least, most);
  };
}

FlagCheck OneOf(std::vector<std::string> choices) {
  return [choices = std::move(choices)](const std::string& text) {
    if (std::find(choices.begin(), choices.end(), text) != choices.end()) return std::string();
    const std::vector<std::string> first(choices.begin(), choices.end() - 1);
    return absl::StrCat(text, " is none of ", absl::StrJoin(first, ", "), " and ", choices.back());
  };
}

CLI::Option* FlagGroup::Choice(const std::string& names, std::string& value, const std::vector<std::string>& choices,
                               const std::string& help) {
  return command_.add_option(names, value, help)
      ->group(heading_)
      ->option_text(absl::StrJoin(choices, "|"))
      ->check(OneOf(choices))
      ->capture_default_str();
}

CLI::Option* FlagGroup::Bytes(const std::string& names, int64_t& value, const std::string& help) {
  constexpr int64_t kMebibyte = 1 << 20;
  const bool whole = value > 0 && value % kMebibyte == 0;
  return command_.add_option(names, value, AfterPhrase(help, "0 to 1PiB, such as 64MiB or 4GiB"))
      ->group(heading_)
      ->option_text("BYTES")
      ->transform(CLI::Validator(ReadBytes, ""))
      ->check(InRange(int64_t{0}, kBytesMax))
      ->default_str(whole ? absl::StrCat(value / kMebibyte, "MiB") : absl::StrCat(value));
}

CLI::Option* FlagGroup::Seconds(const std::string& names, double& value, const std::string& help, double least) {
  return command_.add_option(names, value, WithRange(help, least, kSecondsMax))
      ->group(heading_)
      ->type_name("SECONDS")
      ->check(InRange(least, kSecondsMax))
      ->capture_default_str();
}

}  // namespace goldfinch
