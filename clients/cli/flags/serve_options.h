// Values of the flags of the commands that serve; the flags and their help are in flags_serve.cc.
#ifndef GOLDFINCH_CLIENTS_CLI_FLAGS_SERVE_OPTIONS_H_
#define GOLDFINCH_CLIENTS_CLI_FLAGS_SERVE_OPTIONS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/credentials.h"
#include "coordinator/coordinator.h"
#include "coordinator/front/front_options.h"
#include "coordinator/grpc/service.h"
#include "coordinator/keeper/store_tier.h"
#include "coordinator/membership/membership.h"
#include "coordinator/planner/planner.h"
#include "coordinator/scheduler/scheduler.h"
#include "kernels/open_backend.h"

namespace goldfinch {

// `goldfinch serve`, whose workers are in its own process, and `goldfinch coordinator`.
struct ServeOptions {
  std::string model;                 // --model; workers open the same path unless they are given their own
  std::string model_fingerprint;     // --model-fingerprint; empty: the model's file is on this machine
  std::string config;                // --config; empty: config.json beside the model
  std::string vocab;                 // --vocab; empty: beside the model, or bytes if the model's config says so
  std::string served_model_name;     // --served-model-name; empty: the model's file name
  std::string cache_dtype = "bf16";  // --cache-dtype
  std::string verify = "all";        // --verify

  int stages = 1;                     // --pipeline-parallel-size
  int replicas = 1;                   // --replicas: pipelines side by side
  std::string split = "auto";         // --split auto, border, balanced, or 0-7,8-15,16-23
  ExpectedTraffic traffic;            // --expect-prompt-tokens and so on: what the split is planned for
  int64_t link_bytes_per_second = 0;  // --link-speed between two workers; 0: as measured, or by the transport
  bool replan = false;                // --replan: change the split with the traffic
  double replan_gain = MembershipOptions().replan_gain;                    // --replan-gain
  double replan_after_seconds = MembershipOptions().replan_after_seconds;  // --replan-after
  BackendOptions backend;               // --device, --dtype; --threads for all embedded workers together
  std::string devices;                  // --devices, as ParseDeviceList reads it; empty: --device counts
  double gpu_memory_utilization = 0.9;  // --gpu-memory-utilization for all embedded workers together
  int64_t max_model_len = 1 << 20;      // --max-model-len: tokens of a sequence
  int64_t max_num_seqs = 0;             // --max-num-seqs: sequences that run at once in one pipeline; 0: auto
  int64_t max_step_tokens = 0;          // --max-num-batched-tokens: tokens of one step; 0: auto
  int64_t cache_tokens = 0;             // --cache-tokens of one pipeline; 0: what memory allows
  std::string overcommit = "on";        // --overcommit: reserve what is likely, not the worst case
  std::string gold_tier = "auto";       // --gold-tier of embedded workers
  int64_t context_memory = -1;          // --context-memory of embedded workers; -1: a share of the host's
  bool no_prefix_cache = false;         // --no-prefix-cache
  int64_t snapshot_tokens = SnapshotOptions().first_tokens;  // --snapshot-tokens
  std::string context_dir;                                   // --context-dir; empty: nothing is kept on disk
  int64_t context_disk = -1;                                 // --context-disk; -1: a share of the disk
  int64_t protect_memory = -1;  // --protect-memory of `goldfinch coordinator`; -1: a share of the host's
  int64_t protect_tokens = StoreTierOptions().protect_tokens;  // --protect-tokens
  int64_t memory_bytes = 0;                    // --memory for all embedded workers together; 0: a share of the device's
  int64_t max_queue = QueueLimits().requests;  // --max-queue: requests that wait
  int64_t max_queue_bytes = QueueLimits().bytes;  // --max-queue-bytes: memory of requests that wait

  std::string host = "127.0.0.1";  // --host: addresses of all ports but that of the metrics, separated by commas
  std::string metrics_host = "127.0.0.1";  // --metrics-host: address of the metrics and the probes
  int grpc_port = 50051;                   // --grpc-port; 0: any free one
  int metrics_port = 9090;                 // --metrics-port: HTTP; 0: any free one, -1: none
  int cluster_port = 50052;                // --cluster-port, for workers; 0: any free one
  TlsFiles tls;                            // --grpc-server-cert, --grpc-server-key, --grpc-root-cert
  std::string cluster_host;                // --cluster-host; empty: host
  TlsFiles cluster_tls;                    // --cluster-server-cert, ...
  std::string cluster_key_file;            // --cluster-key-file; empty: workers prove nothing
  bool insecure_cluster = false;           // --insecure-cluster: strangers may reach the cluster port
  std::string api_key_file;                // --api-key-file; empty: no key is asked for
  bool no_grpc_reflection = false;         // --no-grpc-reflection
  // --max-message-bytes: size of a request. A prompt of a million ids has 3 MB, a text of as many tokens 5 MB.
  int64_t max_message_bytes = FrontLimits().message_bytes_max;
  int max_connections = FrontLimits().connections_max;  // --max-connections of one port
  // --max-connections-per-address of one port
  int max_connections_per_address = FrontLimits().connections_per_address_max;
  int max_calls_per_address = FrontLimits().calls_per_address_max;  // --max-calls-per-address of one port
  bool ready_json = false;  // --ready-json: one line of JSON with the ports once they listen

  // The coordinator's options say what these times mean.
  double shutdown_timeout_seconds = 30;  // --shutdown-timeout: for running requests, after SIGTERM
  double recovery_timeout_seconds = CoordinatorOptions().recovery_timeout_seconds;  // --recovery-timeout
  double regroup_wait_seconds = MembershipOptions().regroup_wait_seconds;           // --regroup-wait
  double regrow_after_seconds = MembershipOptions().regrow_after_seconds;           // --regrow-after
  double form_timeout_seconds = MembershipOptions().form_timeout_seconds;           // --form-timeout
  double step_target_ms = 0;                                                // --step-target-ms; 0: by the devices
  double step_timeout_seconds = CoordinatorOptions().step_timeout_seconds;  // --step-timeout
  double heartbeat_interval_seconds = MembershipOptions().heartbeat_interval_seconds;  // --heartbeat-interval
  double heartbeat_timeout_seconds = MembershipOptions().heartbeat_timeout_seconds;    // --heartbeat-timeout
  double stall_timeout_seconds = ServiceOptions().stall_timeout_seconds;               // --stall-timeout
};

// `goldfinch worker`. (WorkerOptions in worker/worker_options.h is what the worker itself is given.)
struct WorkerCommandOptions {
  std::string coordinator;  // --coordinator HOST:PORT
  std::string name;         // --name; empty: host name and process
  std::string model;        // --model; empty: the path that the coordinator names
  std::string config;       // --config; empty: the path that the coordinator names
  // --address at which other workers reach this one; empty: the address of the interface that routes to the coordinator
  std::string address;
  BackendOptions backend;                  // --device, --dtype, --threads
  std::string devices;                     // --devices: a process for each; empty: one process with --device
  bool supervised = false;                 // --supervised: by `goldfinch worker --devices`, which ends it
  double gpu_memory_utilization = 0.9;     // --gpu-memory-utilization
  int64_t memory_bytes = 0;                // --memory; 0: a share of the device's
  std::string gold_tier = "auto";          // --gold-tier
  int64_t context_memory = -1;             // --context-memory; -1: a share of the host's
  TlsFiles tls;                            // --cluster-client-cert, --cluster-client-key, --cluster-root-cert
  std::string key_file;                    // --cluster-key-file; empty: neither side proves anything
  std::string transport = "auto";          // --transport: tcp, nccl; auto: nccl if the device is CUDA and NCCL is there
  double transport_timeout_seconds = 600;  // --transport-timeout: a transfer without progress for this long fails
  double shutdown_timeout_seconds = 10;    // --shutdown-timeout: for the group to end, after SIGTERM
};

// `goldfinch plan`.
struct PlanCommandOptions {
  ServeOptions serve;
  std::string transport = "local";   // --transport: local, tcp or nccl
  std::vector<std::string> workers;  // --worker, as ParsePlannedWorker reads it, one a stage; empty: this machine's
  bool json = false;
};

// A worker that need not exist: "141,700,4000" is one of 141 GB, 700 TFLOP/s and 4,000 GB/s. False unless it is three
// numbers above 0 and below 10^9, the first at most 10^6. The model's memory is not set.
bool ParsePlannedWorker(const std::string& text, WorkerResources* worker);

// The split of --split, unless it is ranges, which ParseSplit reads.
std::optional<SplitAim> ParseSplitAim(const std::string& text);

// The first layer of each stage and the number of layers: 0, 8, 16 and 24 for "0-7,8-15,16-23". False unless the ranges
// follow each other from 0 on.
bool ParseSplit(const std::string& text, std::vector<int>* first_layers, int* layers);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_FLAGS_SERVE_OPTIONS_H_
