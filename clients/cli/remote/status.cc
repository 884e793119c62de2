// goldfinch status: shows the state of a server.
#include "base/status.h"

#include <unistd.h>

#include <chrono>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "clients/cli/remote/remote.h"
#include "clients/cli/remote/remote_commands.h"
#include "clients/cli/remote/status_table.h"
#include "clients/cli/terminal/printable.h"
#include "clients/cli/terminal/terminal.h"
#include "nlohmann/json.hpp"
#include "protos/generate.pb.h"

namespace goldfinch {
namespace {

// Clears the screen and goes to its first line.
constexpr char kClear[] = "\033[H\033[2J";

struct Look {
  v1::GetClusterInfoResponse cluster;
  std::optional<v1::GetModelInfoResponse> model;  // not set before a worker has described the model

  const v1::GetModelInfoResponse* model_or_null() const { return model ? &*model : nullptr; }
};

absl::StatusOr<Look> LookAt(const Remote& remote) {
  Look look;
  GF_ASSIGN_OR_RETURN(look.cluster, remote.GetClusterInfo());
  absl::StatusOr<v1::GetModelInfoResponse> model = remote.GetModelInfo();
  if (model.ok()) {
    look.model = *std::move(model);
  } else if (!absl::IsUnavailable(model.status())) {
    return model.status();
  }
  return look;
}

void PrintStatusJson(const Look& look, bool one_line) {
  const nlohmann::json json = {{"model", look.model ? MessageJson(*look.model) : nlohmann::json()},
                               {"cluster", MessageJson(look.cluster)}};
  std::cout << JsonText(json, one_line ? -1 : 2) << "\n";
}

}  // namespace

absl::Status RunStatus(const StatusOptions& options) {
  GF_ASSIGN_OR_RETURN(const std::unique_ptr<Remote> remote, Remote::Open(options.remote));
  const bool watch = options.watch_seconds.has_value();
  const bool clear = watch && !options.json && isatty(STDOUT_FILENO) != 0;
  std::optional<Look> before;
  while (true) {
    GF_ASSIGN_OR_RETURN(Look look, LookAt(*remote));
    if (options.json) {
      PrintStatusJson(look, watch);
    } else {
      std::cout << (clear    ? kClear
                    : before ? "\n"
                             : "")
                << StatusTable(look.model_or_null(), look.cluster, before ? &before->cluster : nullptr);
    }
    GF_RETURN_IF_ERROR(FlushOutput());
    if (!watch) return absl::OkStatus();
    before = std::move(look);
    std::this_thread::sleep_for(std::chrono::duration<double>(*options.watch_seconds));
  }
}

}  // namespace goldfinch
