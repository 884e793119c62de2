// A read-only memory mapping of a whole file, and what notices that such a file is changed while it is mapped.
#ifndef GOLDFINCH_BASE_MAPPED_FILE_H_
#define GOLDFINCH_BASE_MAPPED_FILE_H_

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace goldfinch {

// Movable; the bytes stay where they are. Thread-safe. Warning: what another program writes to the file shows in the
// mapping, and to read behind the end of a file that was cut short kills this process (SIGBUS). Replace files by
// renaming, never in place.
class MappedFile {
 public:
  // Errors name the path: NOT_FOUND, PERMISSION_DENIED; INVALID_ARGUMENT for a directory, a device or an empty file.
  static absl::StatusOr<MappedFile> Open(const std::string& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::string_view bytes() const { return bytes_; }

  // DATA_LOSS if the file has another size or time of change than when it was opened. What was read before a call that
  // returns OK is what the file held, except for writes through a mapping of another process, whose time the system
  // notes late. Costs one system call.
  absl::Status CheckUnchanged() const;

  // CheckUnchanged for every file that is mapped in this process, and for some of its bytes too: the first call that
  // sees a file takes samples all over it, and later calls compare them, which finds changes that hide their time.
  static absl::Status CheckAllUnchanged();

  // From here on, a SIGBUS that comes from reading a mapped file writes a line to standard error that names the file,
  // the place and the cause, and then ends the process as before. To be called once, before threads start.
  static void ReportFaults();

  // Starts reading `part` of some mapped file from disk and does not wait for it: advice, without effect on results.
  static void WillNeed(std::string_view part);
  // Lets go of `part` of some mapped file: it no longer counts as this process's memory, and is read again when it is
  // looked at again.
  static void DontNeed(std::string_view part);

 private:
  struct Source;

  MappedFile(std::string_view bytes, std::shared_ptr<Source> source);

  std::string_view bytes_;          // empty when moved from
  std::shared_ptr<Source> source_;  // null when moved from
};

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_MAPPED_FILE_H_
