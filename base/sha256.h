// SHA-256 of bytes that come in pieces.
#ifndef GOLDFINCH_BASE_SHA256_H_
#define GOLDFINCH_BASE_SHA256_H_

#include <array>
#include <cstdint>
#include <memory>
#include <string_view>

struct evp_md_ctx_st;

namespace goldfinch {

using Sha256Digest = std::array<uint8_t, 32>;

class Sha256 {
 public:
  Sha256();
  void Add(std::string_view bytes);
  // The digest of all bytes that were added. Nothing may be added afterwards.
  Sha256Digest Finish();

 private:
  struct Free {
    void operator()(evp_md_ctx_st* context) const;
  };
  std::unique_ptr<evp_md_ctx_st, Free> context_;
};

}  // namespace goldfinch

#endif  // GOLDFINCH_BASE_SHA256_H_
