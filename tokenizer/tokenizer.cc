#include "tokenizer/tokenizer.h"

#include <array>
#include <cstddef>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace goldfinch {
namespace {

std::vector<ByteTrie::Entry> TrieEntries(const Vocabulary& vocabulary) {
  std::vector<ByteTrie::Entry> entries;
  entries.reserve(vocabulary.size());
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    const std::string_view text = vocabulary.TokenBytes(id);
    if (!text.empty()) entries.push_back({text, static_cast<uint16_t>(id)});
  }
  return entries;
}

}  // namespace

Tokenizer::Tokenizer(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)), trie_(TrieEntries(vocabulary_)) {}

std::unique_ptr<Tokenizer> Tokenizer::Bytes() { return std::unique_ptr<Tokenizer>(new Tokenizer(Vocabulary::Bytes())); }

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromFile(const std::string& path) {
  GF_ASSIGN_OR_RETURN(Vocabulary vocabulary, Vocabulary::FromFile(path));
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(vocabulary)));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromText(std::string_view text, std::string_view name) {
  GF_ASSIGN_OR_RETURN(Vocabulary vocabulary, Vocabulary::FromText(text, name));
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(vocabulary)));
}

void Tokenizer::Encode(std::string_view text, std::vector<int32_t>* ids) const {
  std::array<int32_t, 1024> block;  // Saves the vector's capacity check for every token.
  size_t size = 0;
  const char* p = text.data();
  const char* const end = p + text.size();
  while (p != end) {
    const ByteTrie::Match match = trie_.Longest(p, end);
    // Every single byte is a token, so a match has at least one byte.
    block[size++] = match.id;
    p = match.end;
    if (size == block.size()) {
      ids->insert(ids->end(), block.begin(), block.end());
      size = 0;
    }
  }
  ids->insert(ids->end(), block.begin(), block.begin() + size);
}

absl::Status Tokenizer::Decode(absl::Span<const int32_t> ids, std::string* text) const {
  size_t bytes = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    const size_t token_bytes = TokenBytes(ids[i]).size();
    if (token_bytes == 0 && ids[i] != 0) {
      return absl::InvalidArgumentError(absl::StrCat("token id ", ids[i], " at position ", i,
                                                     " is not in the vocabulary (ids 0 to ", vocab_size() - 1, ")"));
    }
    bytes += token_bytes;
  }
  const size_t begin = text->size();
  text->resize(begin + bytes);
  char* out = text->data() + begin;
  for (const int32_t id : ids) {
    const std::string_view token = TokenBytes(id);
    out += token.copy(out, token.size());
  }
  return absl::OkStatus();
}

}  // namespace goldfinch
