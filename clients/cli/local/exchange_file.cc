#include "clients/cli/local/exchange_file.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/safe_text.h"
#include "base/status.h"
#include "clients/cli/terminal/terminal.h"
#include "coordinator/store/files.h"

namespace goldfinch {
namespace {

constexpr int64_t kPieceBytes = 1 << 20;

class HeaderSink : public ExchangeSink {
 public:
  absl::Status OnHeader(const ExchangeHeader& seen) override {
    header = seen;
    return absl::OkStatus();
  }
  absl::Status OnIds(absl::Span<const int32_t>) override { return absl::OkStatus(); }
  absl::Status OnBytes(int, std::string_view) override { return absl::OkStatus(); }

  ExchangeHeader header;
};

absl::Status OfFile(const std::string& path, const absl::Status& status) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(SafeText(path), ": ", std::string(status.message())));
}

}  // namespace

absl::StatusOr<OpenFile> OpenExchangeFile(const std::string& path) {
  std::error_code error;
  const std::filesystem::path target = std::filesystem::canonical(path, error);
  return Files::System()->OpenToRead(error ? path : target.string());
}

absl::StatusOr<Sha256Digest> ReadExchangeFile(const std::string& path, ExchangeSink* sink) {
  GF_ASSIGN_OR_RETURN(const OpenFile file, OpenExchangeFile(path));
  struct stat about {};
  if (fstat(file.fd(), &about) != 0) return FileError(errno, path, "read");
  if (!S_ISREG(about.st_mode)) return absl::InvalidArgumentError(absl::StrCat(SafeText(path), ": is not a file"));
  const int64_t size = about.st_size;
  ExchangeParser parser(sink);
  Sha256 hash;
  std::vector<char> piece(std::min(size, kPieceBytes));
  ProgressBar bar("checking the file", "bytes");
  for (int64_t at = 0; at < size; at += static_cast<int64_t>(piece.size())) {
    piece.resize(std::min(size - at, kPieceBytes));
    GF_RETURN_IF_ERROR(Files::System()->Read(file, at, absl::MakeSpan(piece)));
    const std::string_view bytes(piece.data(), piece.size());
    GF_RETURN_IF_ERROR(OfFile(path, parser.Append(bytes)));
    hash.Add(bytes);
    bar.Update(at, size);
  }
  bar.Done();
  GF_RETURN_IF_ERROR(OfFile(path, parser.Finish(nullptr)));
  return hash.Finish();
}

absl::StatusOr<ExchangeFileInfo> CheckExchangeFile(const std::string& path) {
  HeaderSink sink;
  GF_ASSIGN_OR_RETURN(const Sha256Digest digest, ReadExchangeFile(path, &sink));
  return ExchangeFileInfo{std::move(sink.header), digest};
}

}  // namespace goldfinch
