// TLS of a front, whose files may be renewed while it runs.
#ifndef GOLDFINCH_COORDINATOR_FRONT_TLS_H_
#define GOLDFINCH_COORDINATOR_FRONT_TLS_H_

#include <memory>
#include <mutex>
#include <string>

#include "absl/status/statusor.h"
#include "base/credentials.h"

namespace goldfinch {

// Thread-safe.
class ServerTls {
 public:
  // Null if no files are given. Errors are those of MakeServerTls. Warns if others can read the private key.
  static absl::StatusOr<std::unique_ptr<ServerTls>> Open(const TlsFiles& files);

  // For new connections. Those that have begun keep theirs.
  std::shared_ptr<ssl_ctx_st> context() const;

  // Looks at the files' times, sizes and numbers, and loads them once they have changed and then stayed the same until
  // the next call. To be called every few seconds.
  void Poll();
  // Loads the files now. Logs what came of it; files that cannot be used change nothing.
  void Reload();

 private:
  ServerTls(TlsFiles files, std::shared_ptr<ssl_ctx_st> context);

  // Changes if one of the files does.
  std::string Signature() const;
  void Load(const std::string& signature);

  const TlsFiles files_;
  mutable std::mutex mutex_;
  // Guarded by mutex_.
  std::shared_ptr<ssl_ctx_st> context_;
  std::string loaded_;  // signature of the files that were loaded last, used or not
  std::string seen_;    // by the last Poll
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_FRONT_TLS_H_
