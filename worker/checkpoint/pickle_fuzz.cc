// A .pth file with a pickle of any bytes, and good storages and checksums.
#include <string>

#include "worker/checkpoint/checkpoint_fuzz.h"

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned) {
  static const std::string good = goldfinch::StateDictPickle(goldfinch::FuzzViews());
  return goldfinch::MutateFrom(good, data, size, max_size);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string pickle(reinterpret_cast<const char*>(data), size);
  goldfinch::ReadEverything(goldfinch::PthBytes(
      pickle, {{"0", std::string(24, '\1')}, {"1", std::string(12, '\2')}, {"2", std::string(12, '\3')}}));
  return 0;
}
