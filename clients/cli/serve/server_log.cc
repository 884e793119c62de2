#include "clients/cli/serve/server_log.h"

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/log_limiter.h"
#include "base/safe_text.h"
#include "clients/cli/flags/flag_names.h"
#include "grpc/support/log.h"
#include "spdlog/formatter.h"
#include "spdlog/pattern_formatter.h"
#include "spdlog/sinks/stdout_color_sinks.h"
#include "spdlog/spdlog.h"

namespace goldfinch {
namespace {

class FlagNamingFormatter final : public spdlog::formatter {
 public:
  explicit FlagNamingFormatter(std::unique_ptr<spdlog::formatter> pattern) : pattern_(std::move(pattern)) {}

  void format(const spdlog::details::log_msg& message, spdlog::memory_buf_t& text) override {
    const std::string_view payload(message.payload.data(), message.payload.size());
    const std::string named = SafeText(NameFlags(payload));  // names of workers and models come from outside
    spdlog::details::log_msg translated = message;
    translated.payload = named;
    pattern_->format(translated, text);
    // The pattern tells the sink by these which part to color.
    message.color_range_start = translated.color_range_start;
    message.color_range_end = translated.color_range_end;
  }

  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<FlagNamingFormatter>(pattern_->clone());
  }

 private:
  const std::unique_ptr<spdlog::formatter> pattern_;
};

// What gRPC has to say. Strangers can make it say much: lines of a failed handshake, or of a compressed message.
void LogForGrpc(gpr_log_func_args* args) {
  static LogLimiter limiter(/*per_second=*/1, /*burst=*/50);
  const std::optional<std::string> more = limiter.Take();
  if (!more) return;
  const auto level = args->severity == GPR_LOG_SEVERITY_ERROR ? spdlog::level::warn : spdlog::level::info;
  spdlog::log(level, "gRPC: {}{}", args->message, *more);
}

}  // namespace

void LogAsServer() {
  spdlog::set_default_logger(spdlog::stderr_color_mt("goldfinch server"));
  spdlog::set_formatter(std::make_unique<FlagNamingFormatter>(
      std::make_unique<spdlog::pattern_formatter>("%Y-%m-%dT%H:%M:%S.%e%z %^%l%$ %v")));
  gpr_set_log_function(&LogForGrpc);
}

}  // namespace goldfinch
