// What `goldfinch coordinator` and `goldfinch worker` need to trust each other.
#ifndef GOLDFINCH_CLIENTS_CLI_SERVE_CLUSTER_SETUP_H_
#define GOLDFINCH_CLIENTS_CLI_SERVE_CLUSTER_SETUP_H_

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/shared_key.h"
#include "clients/cli/flags/serve_options.h"
#include "coordinator/membership/membership.h"
#include "coordinator/planner/planner.h"
#include "kernels/backend.h"
#include "protos/cluster.pb.h"

namespace goldfinch {

// The addresses of the cluster port, separated by commas.
std::string ClusterHost(const ServeOptions& options);

// Whether only this machine reaches what listens on these addresses, which are separated by commas.
bool OnlyLoopback(const std::string& hosts);

// UsageError, with the flags that mend it, if strangers could reach the cluster port and join as workers: it is not on
// loopback, and workers prove nothing. TLS alone proves nothing about workers.
absl::Status CheckClusterPort(const ServeOptions& options);

// The key that the file holds; nothing if `file` is empty.
absl::StatusOr<std::optional<SharedKey>> ReadClusterKey(const std::string& file);

// What the planner is given, and how many stages there are. UsageError if --split names other ranges or another number
// of stages.
absl::StatusOr<PartitionOptions> PartitionOptionsOf(const ServeOptions& options, int* stages);

// The model's description by a worker with this back end. Errors are those of StageLoader::OpenModel.
absl::StatusOr<cluster::v1::Described> DescribeModelOn(Backend& backend, const ServeOptions& options);

// Sets the description or the fingerprint of the model that is served, from the model's file or else from
// --model-fingerprint. Reads the file's header and samples of its tensors.
absl::Status DescribeModel(const ServeOptions& options, MembershipOptions* membership);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_SERVE_CLUSTER_SETUP_H_
