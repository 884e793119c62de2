#include "kernels/cuda/cuda_library.h"

#include <dlfcn.h>
#include <glob.h>

#include <cstdlib>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace goldfinch::cuda {
namespace {

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// The folders to look in, as glob patterns.
std::vector<std::string> Folders() {
  std::vector<std::string> folders;
  const std::string given = Environment("GOLDFINCH_CUDA_LIBRARIES");
  for (size_t begin = 0; begin < given.size();) {
    const size_t end = std::min(given.find(':', begin), given.size());
    if (end > begin) folders.push_back(given.substr(begin, end - begin));
    begin = end + 1;
  }
  folders.emplace_back();  // stands for the system's own folders
  const std::string cuda_home = Environment("CUDA_HOME");
  if (!cuda_home.empty()) folders.push_back(cuda_home + "/lib64");
  folders.emplace_back("/usr/local/cuda/lib64");
  std::vector<std::string> prefixes;
  for (const char* variable : {"VIRTUAL_ENV", "CONDA_PREFIX"}) {
    if (const std::string value = Environment(variable); !value.empty()) prefixes.push_back(value);
  }
  if (const std::string home = Environment("HOME"); !home.empty()) prefixes.push_back(home + "/.local");
  for (const char* prefix : {"/usr/local", "/usr", "/opt/*", "/opt/*/.venv", "/opt/*/venv"})
    prefixes.emplace_back(prefix);
  for (const std::string& prefix : prefixes) {
    // The packages of CUDA 12 have a folder for each library, those of CUDA 13 one for all.
    for (const char* packages :
         {"/lib/python3*/site-packages", "/lib/python3*/dist-packages", "/lib/python3/dist-packages"}) {
      folders.push_back(absl::StrCat(prefix, packages, "/nvidia/*/lib"));
    }
  }
  return folders;
}

void* OpenIn(const std::string& folder, const std::string& name) {
  if (folder.empty()) return dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  glob_t found = {};
  void* handle = nullptr;
  if (glob((folder + "/" + name).c_str(), 0, nullptr, &found) == 0) {
    for (size_t i = 0; i < found.gl_pathc && handle == nullptr; ++i) {
      handle = dlopen(found.gl_pathv[i], RTLD_NOW | RTLD_LOCAL);
    }
  }
  globfree(&found);
  return handle;
}

}  // namespace

absl::StatusOr<void*> OpenCudaLibrary(const std::string& name) {
  std::string places;
  for (const std::string& folder : Folders()) {
    if (void* handle = OpenIn(folder, name)) return handle;
    absl::StrAppend(&places, places.empty() ? "" : ", ", folder.empty() ? "the system's libraries" : folder);
  }
  return absl::UnavailableError(
      absl::StrCat("no ", name, " in ", places, "; GOLDFINCH_CUDA_LIBRARIES can name the folder that has it"));
}

}  // namespace goldfinch::cuda
