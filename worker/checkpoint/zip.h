// Reads the directory of a zip archive in memory whose files are stored plainly, as torch.save writes them.
//
// Not minizip: the one of Debian 12 does not read the zip64 fields of directory entries (where it is built for 64
// bits), so that every archive beyond 4 GiB is damaged to it.
#ifndef GOLDFINCH_WORKER_CHECKPOINT_ZIP_H_
#define GOLDFINCH_WORKER_CHECKPOINT_ZIP_H_

#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace goldfinch {

// Points into the archive.
struct ZipEntry {
  std::string_view name;
  std::string_view bytes;
  uint32_t crc32 = 0;  // as the directory says; not compared with the bytes
};

// All files of the archive, in the order of its directory; no two of them share bytes or have one name. Reads the
// directory and the local headers, not the files. An archive whose files are compressed or encrypted, that has more
// than one volume or something else in front of it is INVALID_ARGUMENT, like any damage.
absl::StatusOr<std::vector<ZipEntry>> ReadZipDirectory(std::string_view archive);

}  // namespace goldfinch

#endif  // GOLDFINCH_WORKER_CHECKPOINT_ZIP_H_
