#include "tokenizer/vocabulary.h"

#include <algorithm>
#include <bitset>
#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "base/status.h"
#include "tokenizer/utf8.h"

namespace goldfinch {
namespace {

constexpr char kVocabularyFileName[] = "rwkv_vocab_v20230424.txt";
// 65535 lines of 128 bytes, each written as \U000000xx, are 85 MB.
constexpr size_t kFileBytesMax = size_t{128} << 20;
constexpr int kSingleBytes = 256;

// Untrusted text for an error message, escaped and cut.
std::string Quoted(std::string_view text) {
  constexpr size_t kShownBytes = 40;
  return absl::StrCat("\"", absl::CHexEscape({text.data(), std::min(text.size(), kShownBytes)}),
                      text.size() > kShownBytes ? "..." : "", "\"");
}

// Accepts digits alone: no sign, no space.
std::optional<int64_t> ParseDecimal(std::string_view text) {
  int64_t value = 0;
  const char* const end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (text.empty() || text[0] == '-' || error != std::errc() || stop != end) return std::nullopt;
  return value;
}

// Parses one Python str or bytes literal.
class LiteralParser {
 public:
  explicit LiteralParser(std::string_view literal) : rest_(literal) {}

  // Sets `*text` to the bytes that the literal stands for.
  absl::Status Parse(std::string* text) {
    text->clear();
    is_bytes_ = !rest_.empty() && rest_[0] == 'b';
    if (is_bytes_) rest_.remove_prefix(1);
    if (rest_.empty() || (rest_[0] != '\'' && rest_[0] != '"')) {
      return absl::InvalidArgumentError("the literal does not begin with ', \", b' or b\"");
    }
    const char quote = rest_[0];
    rest_.remove_prefix(1);
    while (!rest_.empty() && rest_[0] != quote) {
      GF_RETURN_IF_ERROR(rest_[0] == '\\' ? ParseEscape(text) : ParseCharacter(text));
    }
    if (rest_.empty()) return absl::InvalidArgumentError("the literal has no closing quote");
    if (rest_.size() > 1) {
      return absl::InvalidArgumentError(absl::StrCat("text after the closing quote: ", Quoted(rest_.substr(1))));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status ParseCharacter(std::string* text) {
    const auto byte = static_cast<uint8_t>(rest_[0]);
    if (byte < 0x20 && byte != '\t') {
      return absl::InvalidArgumentError(absl::StrFormat("control character 0x%02x is not escaped", byte));
    }
    if (byte < 0x80) {
      text->push_back(rest_[0]);
      rest_.remove_prefix(1);
      return absl::OkStatus();
    }
    if (is_bytes_) {
      return absl::InvalidArgumentError(absl::StrFormat("byte 0x%02x is not escaped in a bytes literal", byte));
    }
    Utf8Scanner scanner;
    size_t size = 0;
    auto step = Utf8Scanner::Step::kMore;
    while (step == Utf8Scanner::Step::kMore && size < rest_.size()) step = scanner.Feed(rest_[size++]);
    if (step != Utf8Scanner::Step::kCharacter) {
      return absl::InvalidArgumentError(absl::StrFormat("invalid UTF-8 at byte 0x%02x", byte));
    }
    text->append(rest_.substr(0, size));
    rest_.remove_prefix(size);
    return absl::OkStatus();
  }

  absl::Status ParseEscape(std::string* text) {
    if (rest_.size() < 2) return absl::InvalidArgumentError("the literal has no closing quote");
    const char kind = rest_[1];
    switch (kind) {
      case '\\':
      case '\'':
      case '"':
        return AddSimple(kind, text);
      case 'a':
        return AddSimple('\a', text);
      case 'b':
        return AddSimple('\b', text);
      case 'f':
        return AddSimple('\f', text);
      case 'n':
        return AddSimple('\n', text);
      case 'r':
        return AddSimple('\r', text);
      case 't':
        return AddSimple('\t', text);
      case 'v':
        return AddSimple('\v', text);
      case 'x':
        return AddCode(2, 2, 2, 16, text);
      case 'u':
      case 'U':
        if (is_bytes_) break;
        return kind == 'u' ? AddCode(2, 4, 4, 16, text) : AddCode(2, 8, 8, 16, text);
      default:
        if (kind >= '0' && kind <= '7') return AddCode(1, 1, 3, 8, text);
        break;
    }
    // Python warns of an escape that it does not know and keeps its backslash; in a vocabulary it means damage.
    // \N{...} needs the table of Unicode names, which Python's repr never uses.
    return absl::InvalidArgumentError(
        absl::StrCat("unknown escape ", Quoted(rest_.substr(0, 2)), is_bytes_ ? " in a bytes literal" : ""));
  }

  absl::Status AddSimple(char c, std::string* text) {
    text->push_back(c);
    rest_.remove_prefix(2);
    return absl::OkStatus();
  }

  // The number in `base` that begins at rest_[begin] and has digits_min to digits_max digits.
  absl::Status AddCode(size_t begin, size_t digits_min, size_t digits_max, int base, std::string* text) {
    const std::string_view digits = rest_.substr(begin, digits_max);
    uint32_t code = 0;
    const char* const stop = std::from_chars(digits.data(), digits.data() + digits.size(), code, base).ptr;
    const size_t size = begin + (stop - digits.data());
    const std::string_view escape = rest_.substr(0, size);
    if (size < begin + digits_min) {
      return absl::InvalidArgumentError(
          absl::StrCat("escape ", Quoted(rest_.substr(0, begin + digits_min)), " needs ", digits_min, " hex digits"));
    }
    if (is_bytes_ && code > 0xff) {
      return absl::InvalidArgumentError(absl::StrCat("escape ", Quoted(escape), " is more than a byte"));
    }
    if (is_bytes_) {
      text->push_back(static_cast<char>(code));
    } else if (!AppendUtf8(code, text)) {
      return absl::InvalidArgumentError(absl::StrCat("escape ", Quoted(escape), " is not a character"));
    }
    rest_.remove_prefix(size);
    return absl::OkStatus();
  }

  std::string_view rest_;
  bool is_bytes_ = false;
};

// Splits a line into id, text and length, and checks each. The caller keeps `text`, so that its memory is reused.
absl::Status ParseLine(std::string_view line, int32_t* id, std::string* text) {
  const size_t first = line.find(' ');
  const size_t last = line.rfind(' ');
  if (first == last) return absl::InvalidArgumentError("expected `id literal length`");
  const std::string_view id_field = line.substr(0, first);
  const std::string_view length_field = line.substr(last + 1);

  const std::optional<int64_t> id_value = ParseDecimal(id_field);
  if (!id_value || *id_value < 1 || *id_value > kTokenIdMax) {
    return absl::InvalidArgumentError(absl::StrCat("id ", Quoted(id_field), " is not a number in 1..", kTokenIdMax));
  }
  const std::optional<int64_t> length = ParseDecimal(length_field);
  if (!length) return absl::InvalidArgumentError(absl::StrCat("length ", Quoted(length_field), " is not a number"));

  GF_RETURN_IF_ERROR(LiteralParser(line.substr(first + 1, last - first - 1)).Parse(text));
  if (text->empty()) return absl::InvalidArgumentError("the text is empty");
  if (static_cast<size_t>(*length) != text->size()) {
    return absl::InvalidArgumentError(absl::StrCat("length is ", *length, ", the text has ", text->size(), " bytes"));
  }
  if (text->size() > kTokenBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text has ", text->size(), " bytes, the limit is ", kTokenBytesMax));
  }
  *id = static_cast<int32_t>(*id_value);
  return absl::OkStatus();
}

absl::Status FileError(const std::string& path, int error) {
  return absl::Status(absl::ErrnoToStatusCode(error), absl::StrCat(path, ": ", std::strerror(error)));
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  const std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (file == nullptr) return FileError(path, errno);
  std::string text;
  char block[1 << 16];
  size_t size = 0;
  while ((size = std::fread(block, 1, sizeof(block), file.get())) > 0) {
    text.append(block, size);
    if (text.size() > kFileBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": larger than ", kFileBytesMax, " bytes, which no vocabulary is"));
    }
  }
  if (std::ferror(file.get()) != 0) return FileError(path, errno);
  return text;
}

}  // namespace

Vocabulary Vocabulary::Bytes() {
  Vocabulary vocabulary;
  for (int byte = 0; byte < kSingleBytes; ++byte) {
    const char text = static_cast<char>(byte);
    vocabulary.Add(byte + 1, {&text, 1});
  }
  return vocabulary;
}

absl::StatusOr<Vocabulary> Vocabulary::FromFile(const std::string& path) {
  GF_ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return FromText(text, path);
}

absl::StatusOr<Vocabulary> Vocabulary::FromText(std::string_view text, std::string_view name) {
  if (text.empty()) return absl::InvalidArgumentError(absl::StrFormat("%s: the vocabulary is empty", name));
  Vocabulary vocabulary;
  absl::flat_hash_map<std::string, int32_t> id_of_text;
  std::bitset<kSingleBytes> single_bytes;
  std::string token;
  for (int64_t line_number = 1; !text.empty(); ++line_number) {
    const auto error = [&](absl::string_view what) {
      return absl::InvalidArgumentError(absl::StrFormat("%s:%d: %s", name, line_number, what));
    };
    std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);

    int32_t id = 0;
    if (const absl::Status status = ParseLine(line, &id, &token); !status.ok()) {
      return error(status.message());
    }
    if (!vocabulary.TokenBytes(id).empty()) {
      return error(absl::StrCat("id ", id, " has the text ", Quoted(vocabulary.TokenBytes(id)), " already"));
    }
    if (const auto [it, inserted] = id_of_text.emplace(token, id); !inserted) {
      return error(absl::StrCat("the text ", Quoted(token), " belongs to token ", it->second, " already"));
    }
    if (token.size() == 1) single_bytes.set(static_cast<uint8_t>(token[0]));
    vocabulary.Add(id, token);
  }
  for (int byte = 0; byte < kSingleBytes; ++byte) {
    if (!single_bytes.test(byte)) {
      return absl::InvalidArgumentError(absl::StrFormat(
          "%s: no token for the single byte 0x%02x; a vocabulary needs all 256, it has %d (is the file cut off?)", name,
          byte, single_bytes.count()));
    }
  }
  return vocabulary;
}

void Vocabulary::Add(int32_t id, std::string_view text) {
  if (id >= size()) tokens_.resize(id + 1);
  tokens_[id] = {static_cast<uint32_t>(bytes_.size()), static_cast<uint32_t>(text.size())};
  bytes_.append(text);
}

absl::StatusOr<std::string> FindVocabulary(const std::string& vocab, const std::string& model_path) {
  if (!vocab.empty()) return vocab;
  const std::filesystem::path model(model_path);
  std::error_code ignored;  // A path that cannot be read counts as a path without a file.
  for (const std::filesystem::path& directory : {model, model.parent_path()}) {
    const std::filesystem::path candidate = directory / kVocabularyFileName;
    if (std::filesystem::is_regular_file(candidate, ignored)) return candidate.string();
  }
  return absl::NotFoundError(absl::StrCat("vocab is not set, and there is no ", kVocabularyFileName, " in or beside ",
                                          model_path, "; `pip download rwkv` fetches a wheel that contains the file"));
}

}  // namespace goldfinch
