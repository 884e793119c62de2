#include "clients/cli/serve/cluster_setup.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/host_port.h"
#include "base/status.h"
#include "clients/cli/terminal/terminal.h"
#include "coordinator/front/listener.h"
#include "kernels/backend.h"
#include "protos/cluster.pb.h"
#include "worker/stage_loader.h"
#include "worker/worker_options.h"

namespace goldfinch {
namespace {

constexpr int64_t kScoredRows = 64;  // rows of logits for scoring in one step

}  // namespace

std::string ClusterHost(const ServeOptions& options) {
  return options.cluster_host.empty() ? options.host : options.cluster_host;
}

bool OnlyLoopback(const std::string& hosts) { return std::ranges::all_of(SplitHosts(hosts), IsLoopback); }

absl::Status CheckClusterPort(const ServeOptions& options) {
  const std::string host = ClusterHost(options);
  const bool proved = !options.cluster_key_file.empty() || !options.cluster_tls.roots.empty();
  if (proved || options.insecure_cluster || OnlyLoopback(host)) return absl::OkStatus();
  return UsageError(absl::StrCat(
      options.cluster_host.empty() ? "--host" : "--cluster-host", " is ", host,
      ", and whoever reaches the cluster port there could join as a worker, read prompts and make up answers. Give "
      "coordinator and workers the same key (openssl rand -hex 32 > cluster.key; --cluster-key-file cluster.key) or "
      "certificates (--cluster-root-cert), or listen on loopback (--cluster-host 127.0.0.1); --insecure-cluster "
      "starts without any of them"));
}

absl::StatusOr<std::optional<SharedKey>> ReadClusterKey(const std::string& file) {
  if (file.empty()) return std::optional<SharedKey>();
  GF_ASSIGN_OR_RETURN(SharedKey key, SharedKey::FromFile(file));
  return std::optional<SharedKey>(std::move(key));
}

absl::StatusOr<PartitionOptions> PartitionOptionsOf(const ServeOptions& options, int* stages) {
  PartitionOptions partition;
  // One row for each sequence that decodes, and some for scoring in the same step. Where the number of sequences is
  // chosen later, so are their rows.
  partition.max_logit_rows = options.max_num_seqs + kScoredRows;
  partition.max_sequences = static_cast<int>(options.max_num_seqs);
  partition.max_sequence_tokens = options.max_model_len;
  partition.cache_tokens = options.cache_tokens;
  // 0 is auto; else all sequences must be able to decode in one step.
  partition.max_step_tokens = options.max_step_tokens > 0 ? std::max(options.max_step_tokens, options.max_num_seqs) : 0;
  partition.traffic = options.traffic;
  partition.links.bytes_per_second = static_cast<double>(options.link_bytes_per_second);
  *stages = options.stages;
  if (const std::optional<SplitAim> aim = ParseSplitAim(options.split)) {
    partition.aim = *aim;
    return partition;
  }
  if (!ParseSplit(options.split, &partition.split, &partition.split_layers)) {
    return UsageError(absl::StrCat("--split is ", options.split));
  }
  *stages = static_cast<int>(partition.split.size());
  if (options.stages == 1 || options.stages == *stages) return partition;
  return UsageError(absl::StrCat("--split has ", *stages, " stages, --pipeline-parallel-size is ", options.stages));
}

absl::StatusOr<cluster::v1::Described> DescribeModelOn(Backend& backend, const ServeOptions& options) {
  const WorkerOptions worker;
  StageLoader loader(worker, backend);
  cluster::v1::Welcome welcome;
  welcome.set_model(options.model);
  welcome.set_config(options.config);
  welcome.set_verify("none");
  welcome.set_cache_dtype(options.cache_dtype);
  welcome.set_heartbeat_timeout_seconds(1);
  cluster::v1::Described described;
  GF_RETURN_IF_ERROR(loader.OpenModel(welcome, &described));
  return described;
}

absl::Status DescribeModel(const ServeOptions& options, MembershipOptions* membership) {
  // As a worker on the CPU does it; only what a device takes of memory differs, and that is not compared.
  const std::unique_ptr<Backend> backend = MakeCpuBackend(/*threads=*/1);
  absl::StatusOr<cluster::v1::Described> described = DescribeModelOn(*backend, options);
  const absl::Status& status = described.status();
  const std::string& fingerprint = options.model_fingerprint;
  if (absl::IsNotFound(status) && !fingerprint.empty()) {
    membership->fingerprint = fingerprint;
    return absl::OkStatus();
  }
  if (absl::IsNotFound(status)) {
    return absl::NotFoundError(absl::StrCat(std::string(status.message()),
                                            "; if only the workers have the file, give its fingerprint "
                                            "(--model-fingerprint), which `goldfinch inspect --json` prints there"));
  }
  GF_RETURN_IF_ERROR(status);
  if (!fingerprint.empty() && fingerprint != described->fingerprint()) {
    return absl::FailedPreconditionError(absl::StrCat(options.model, ": the fingerprint is ", described->fingerprint(),
                                                      ", --model-fingerprint is ", fingerprint));
  }
  membership->description = *std::move(described);
  return absl::OkStatus();
}

}  // namespace goldfinch
