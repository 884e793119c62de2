// A read-only memory mapping of a whole file.
#ifndef GOLDFINCH_BASE_MAPPED_FILE_H_
#define GOLDFINCH_BASE_MAPPED_FILE_H_

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace goldfinch {

// Movable; the bytes stay where they are. Thread-safe. Warning: a file that another program cuts short while it is
// mapped kills this process (SIGBUS) when it reads past the new end. Replace files by renaming, never in place.
class MappedFile {
 public:
  // Errors name the path: NOT_FOUND, PERMISSION_DENIED; INVALID_ARGUMENT for a directory, a device or an empty file.
  static absl::StatusOr<MappedFile> Open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::string_view bytes() const { return bytes_; }

  // Starts reading `part` of some mapped file from disk and does not wait for it: advice, without effect on results.
  static void WillNeed(std::string_view part);
  // Lets go of `part` of some mapped file: it no longer counts as this process's memory, and is read again when it is
  // looked at again.
  static void DontNeed(std::string_view part);

 private:
  explicit MappedFile(std::string_view bytes) : bytes_(bytes) {}

  std::string_view bytes_;  // empty when moved from
};

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_MAPPED_FILE_H_
