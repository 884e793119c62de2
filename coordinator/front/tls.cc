#include "coordinator/front/tls.h"

#include <sys/stat.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "spdlog/spdlog.h"

namespace goldfinch {
namespace {

void WarnOfOpenKey(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) == 0 && (info.st_mode & S_IROTH) != 0) {
    spdlog::warn("{}: every user of this machine can read this private key", path);
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<ServerTls>> ServerTls::Open(const TlsFiles& files) {
  GF_ASSIGN_OR_RETURN(std::shared_ptr<ssl_ctx_st> context, MakeServerTls(files));
  if (context == nullptr) return nullptr;
  WarnOfOpenKey(files.key);
  return std::unique_ptr<ServerTls>(new ServerTls(files, std::move(context)));
}

ServerTls::ServerTls(TlsFiles files, std::shared_ptr<ssl_ctx_st> context)
    : files_(std::move(files)), context_(std::move(context)), loaded_(Signature()), seen_(loaded_) {}

std::shared_ptr<ssl_ctx_st> ServerTls::context() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return context_;
}

std::string ServerTls::Signature() const {
  std::string signature;
  for (const std::string& path : {files_.certificate, files_.key, files_.roots}) {
    struct stat info {};
    if (path.empty() || stat(path.c_str(), &info) != 0) info = {};
    absl::StrAppend(&signature, info.st_dev, ":", info.st_ino, ":", info.st_size, ":", info.st_mtim.tv_sec, ":",
                    info.st_mtim.tv_nsec, ";");
  }
  return signature;
}

void ServerTls::Poll() {
  const std::string signature = Signature();
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const bool settled = std::exchange(seen_, signature) == signature;
    if (signature == loaded_ || !settled) return;
  }
  Load(signature);
}

void ServerTls::Reload() { Load(Signature()); }

void ServerTls::Load(const std::string& signature) {
  absl::StatusOr<std::shared_ptr<ssl_ctx_st>> context = MakeServerTls(files_);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    loaded_ = signature;
    if (context.ok()) context_ = *context;
  }
  if (!context.ok()) {
    spdlog::error("new connections keep the old certificate: {}", std::string(context.status().message()));
    return;
  }
  spdlog::info("new connections get the certificate of {}", files_.certificate);
  WarnOfOpenKey(files_.key);
}

}  // namespace goldfinch
