// A safetensors file of any bytes.
#include <string>

#include "worker/checkpoint/checkpoint_fuzz.h"

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  static const std::string good = goldfinch::SafetensorsBytes(goldfinch::FuzzTensors());
  static const std::string quantized =
      goldfinch::RawSafetensors(goldfinch::QuantizedTensors(), goldfinch::kQuantizedMetadata);
  return goldfinch::MutateFrom(seed % 2 == 0 ? good : quantized, data, size, max_size);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  goldfinch::ReadEverything(std::string(reinterpret_cast<const char*>(data), size));
  return 0;
}
