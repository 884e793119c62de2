// Flags that several commands share.
#ifndef GOLDFINCH_CLIENTS_CLI_FLAGS_SHARED_FLAGS_H_
#define GOLDFINCH_CLIENTS_CLI_FLAGS_SHARED_FLAGS_H_

#include <cstdint>
#include <string>
#include <vector>

#include "clients/cli/flags/options.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace goldfinch {

// --model, which is required. `names` are "--model", or "model,--model" where it may also be a positional
// argument.
void AddModelFlag(CLI::App& command, const std::string& names, std::string& model);
// --config
void AddConfigFlag(CLI::App& command, std::string& config);
// --vocab
void AddVocabFlag(CLI::App& command, std::string& vocab);
// --verify
void AddVerifyFlag(CLI::App& command, std::string& verify);
// --threads. `phrase` says which threads.
void AddThreadsFlag(CLI::App& command, int& threads, const std::string& phrase = "Threads to compute with");
// --device, --dtype and --threads
void AddBackendFlags(CLI::App& command, BackendOptions& options,
                     const std::string& threads_phrase = "Threads to compute with");
// --devices, instead of the --device of AddBackendFlags; it is returned
CLI::Option* AddDevicesFlag(CLI::App& command, std::string& devices, const std::string& phrase);
// --cache-dtype
void AddCacheDTypeFlag(CLI::App& command, std::string& cache_dtype);
// --gold-tier
void AddGoldTierFlag(CLI::App& command, std::string& gold_tier);
// --max-model-len
void AddMaxModelLenFlag(CLI::App& command, int64_t& tokens);
// --max-num-batched-tokens, at most `most`
void AddMaxStepTokensFlag(CLI::App& command, int64_t& tokens, int64_t most, const std::string& phrase);
// --gpu-memory-utilization, which is returned
CLI::Option* AddMemoryShareFlag(CLI::App& command, double& share);
// --gpu-memory-utilization and, instead of it, --memory. `phrase` says what the memory is for.
void AddMemoryFlags(CLI::App& command, double& share, int64_t& bytes, const std::string& phrase);
// --context-memory, which is -1 if it is not given
void AddContextMemoryFlag(CLI::App& command, int64_t& bytes, const std::string& phrase);
// --expire-after and --replace of what is kept under a name; both are returned
std::vector<CLI::Option*> AddKeepFlags(CLI::App& command, KeepOptions& options);
// --breakpoint of the text that `what` names
CLI::Option* AddBreakpointFlag(CLI::App& command, std::vector<uint64_t>& breakpoints, const std::string& what);
// --server, which is returned and required, and the flags of the connection to it
CLI::Option* AddServerFlags(CLI::App& command, RemoteOptions& options);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_FLAGS_SHARED_FLAGS_H_
