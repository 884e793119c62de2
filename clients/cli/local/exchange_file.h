// Exported contexts (coordinator/store/exchange.h) as files on this machine.
#ifndef GOLDFINCH_CLIENTS_CLI_LOCAL_EXCHANGE_FILE_H_
#define GOLDFINCH_CLIENTS_CLI_LOCAL_EXCHANGE_FILE_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/sha256.h"
#include "coordinator/store/exchange.h"
#include "coordinator/store/files.h"

namespace goldfinch {

// A file that a user has named; it may be a link, which files of a store must not be.
absl::StatusOr<OpenFile> OpenExchangeFile(const std::string& path);
// Reads the whole file, checks everything in it, and hands it to the sink, with a progress bar. Returns its SHA-256.
// Errors name the file; their codes are those of ExchangeParser and of the file system.
absl::StatusOr<Sha256Digest> ReadExchangeFile(const std::string& path, ExchangeSink* sink);
// The same for a sink that only wants to know what is in the file.
struct ExchangeFileInfo {
  ExchangeHeader header;
  Sha256Digest sha256{};
};
absl::StatusOr<ExchangeFileInfo> CheckExchangeFile(const std::string& path);

}  // namespace goldfinch

#endif  // GOLDFINCH_CLIENTS_CLI_LOCAL_EXCHANGE_FILE_H_
