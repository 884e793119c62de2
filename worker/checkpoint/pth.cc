#include "worker/checkpoint/pth.h"

#include <zlib.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/safe_text.h"
#include "base/status.h"
#include "worker/checkpoint/pickle.h"
#include "worker/checkpoint/zip.h"

namespace goldfinch {
namespace {

// Protocol 2, then the integer 0x1950a86a20f9469cfc6c: how torch.save began its files before version 1.6.
constexpr std::string_view kOldTorchMagic = "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

// The archive as torch sees it.
struct Archive {
  std::string prefix;  // "model/"
  absl::flat_hash_map<std::string, int> part_of_name;
};

absl::StatusOr<Archive> OpenArchive(const std::vector<FilePart>& parts) {
  Archive archive;
  for (size_t i = 0; i < parts.size(); ++i) {
    const std::string& name = parts[i].name;
    archive.part_of_name[name] = static_cast<int>(i);
    const size_t slash = name.find('/');
    if (slash == std::string::npos || name.compare(slash, std::string::npos, "/data.pkl") != 0) continue;
    if (!archive.prefix.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the archive has two pickles: ", Quoted(archive.prefix + "data.pkl"), " and ", Quoted(name)));
    }
    archive.prefix = name.substr(0, slash + 1);
  }
  if (archive.prefix.empty()) {
    return absl::InvalidArgumentError("is a zip archive without a '<name>/data.pkl': no file of torch.save");
  }
  const auto byte_order = archive.part_of_name.find(archive.prefix + "byteorder");
  if (byte_order != archive.part_of_name.end()) {
    const std::string_view order = parts[byte_order->second].bytes;
    if (order != "little") {
      return absl::InvalidArgumentError(absl::StrCat("has byte order ", Quoted(order), "; only 'little' can be read"));
    }
  }
  return archive;
}

// Finds the storage of `tensor` in the archive and gives it its dtype.
absl::StatusOr<int> FindStorage(const Archive& archive, const PickledTensor& tensor, std::vector<FilePart>* parts) {
  const std::string name = absl::StrCat(archive.prefix, "data/", std::string(tensor.storage));
  const auto error = [&](const auto&... what) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", Quoted(tensor.name), ": storage ", Quoted(name), " ", what...));
  };
  const auto found = archive.part_of_name.find(name);
  if (found == archive.part_of_name.end()) return error("is not in the archive");
  FilePart& part = (*parts)[found->second];
  if (part.dtype && *part.dtype != tensor.dtype) {
    return error("is of type ", std::string(Name(tensor.dtype)), " here and ", std::string(Name(*part.dtype)),
                 " for another tensor");
  }
  part.dtype = tensor.dtype;
  const int64_t element_bytes = SizeOf(tensor.dtype);
  const int64_t elements = static_cast<int64_t>(part.bytes.size()) / element_bytes;
  if (part.bytes.size() % element_bytes != 0 || tensor.storage_elements != elements) {
    return error("has ", part.bytes.size(), " bytes, but should have ", tensor.storage_elements, " elements of ",
                 element_bytes, " bytes");
  }
  return found->second;
}

}  // namespace

bool LooksLikePth(std::string_view file) { return file.starts_with("PK") || file.starts_with(kOldTorchMagic); }

absl::StatusOr<CheckpointLayout> ReadPth(std::string_view file) {
  if (file.starts_with(kOldTorchMagic)) {
    return absl::InvalidArgumentError(
        "is in the old torch format (before 1.6): load it with torch.load and save it again with torch.save");
  }
  CheckpointLayout layout;
  GF_ASSIGN_OR_RETURN(const std::vector<ZipEntry> entries, ReadZipDirectory(file));
  for (const ZipEntry& entry : entries) {
    layout.parts.push_back({std::string(entry.name), entry.bytes, std::nullopt, entry.crc32});
  }
  GF_ASSIGN_OR_RETURN(const Archive archive, OpenArchive(layout.parts));

  const FilePart& pickle = layout.parts[archive.part_of_name.at(archive.prefix + "data.pkl")];
  const uint32_t crc = crc32_z(0, reinterpret_cast<const Bytef*>(pickle.bytes.data()), pickle.bytes.size());
  if (crc != *pickle.crc32) {
    return absl::DataLossError(absl::StrFormat("archive file %s is damaged: its CRC-32 is %08x and should be %08x",
                                               Quoted(pickle.name), crc, *pickle.crc32));
  }
  GF_ASSIGN_OR_RETURN(const std::vector<PickledTensor> tensors, ReadStateDict(pickle.bytes));
  for (const PickledTensor& tensor : tensors) {
    GF_ASSIGN_OR_RETURN(const int part, FindStorage(archive, tensor, &layout.parts));
    GF_RETURN_IF_ERROR(layout.AddTensor(tensor.name, part, tensor.view, static_cast<int64_t>(file.size())));
  }
  return layout;
}

}  // namespace goldfinch
