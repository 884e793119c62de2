#include "base/small_file.h"

#include <cerrno>
#include <cstring>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace goldfinch {

absl::StatusOr<std::string> ReadSmallFile(const std::string& path, size_t bytes_max) {
  std::ifstream in(path, std::ios::binary);
  if (!in) {
    const int error = errno;
    const std::string message = absl::StrCat(path, ": cannot be read: ", std::strerror(error));
    return error == EACCES ? absl::PermissionDeniedError(message) : absl::NotFoundError(message);
  }
  std::string text;
  char part[4096];
  while (in.read(part, sizeof(part)), in.gcount() > 0) {
    text.append(part, in.gcount());
    if (text.size() > bytes_max) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": more than ", bytes_max, " bytes"));
    }
  }
  if (in.bad()) return absl::DataLossError(absl::StrCat(path, ": cannot be read"));
  return text;
}

}  // namespace goldfinch
