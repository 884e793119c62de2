// goldfinch context verify: checks an exported context, and shows what is in it.
#include <cstdint>
#include <iostream>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/safe_text.h"
#include "base/status.h"
#include "base/units.h"
#include "clients/cli/context/context_commands.h"
#include "clients/cli/local/exchange_file.h"
#include "clients/cli/terminal/columns.h"
#include "clients/cli/terminal/printable.h"
#include "nlohmann/json.hpp"

namespace goldfinch {
namespace {

std::string Sha256Text(const ExchangeFileInfo& info) {
  return absl::BytesToHexString(std::string(reinterpret_cast<const char*>(info.sha256.data()), info.sha256.size()));
}

// "0-5", "1, 3".
std::string LayersText(const std::set<int>& layers) {
  if (layers.size() > 1 && *layers.rbegin() - *layers.begin() + 1 == static_cast<int>(layers.size())) {
    return absl::StrCat(*layers.begin(), "-", *layers.rbegin());
  }
  return absl::StrJoin(layers, ", ");
}

// Parts of one kind, type and shape, over the layers that have them.
std::string PartsTable(const ExchangeHeader& header) {
  struct Sum {
    std::set<int> layers;
    int64_t bytes = 0;
  };
  std::map<std::tuple<std::string, std::string, std::string>, Sum> sums;
  for (const ExchangeTensor& tensor : header.tensors) {
    const SegmentSection& section = header.layout.sections[tensor.section];
    const bool is_part = section.what == SegmentSection::What::kPart;
    const ContextPart part = is_part ? header.segment.model.parts[section.part] : ContextPart();
    std::string shape = absl::StrCat("[", absl::StrJoin(part.shape, ", "), "]");
    if (is_part && part.per_token()) shape += " a token";
    if (section.what == SegmentSection::What::kIds) shape = "one a token";
    if (section.what == SegmentSection::What::kLogits) shape = absl::StrCat("[", header.segment.model.vocab_size, "]");
    Sum& sum = sums[{is_part ? KindName(part.kind) : tensor.name, Name(section.type), shape}];
    if (is_part) sum.layers.insert(part.layer);
    sum.bytes += tensor.bytes;
  }
  std::vector<std::vector<std::string>> rows = {{"part", "layers", "type", "shape", "size"}};
  for (const auto& [key, sum] : sums) {
    const auto& [kind, type, shape] = key;
    rows.push_back({kind, LayersText(sum.layers), type, shape, HumanBytes(sum.bytes)});
  }
  return Columns(rows);
}

std::string Table(const std::string& path, const ExchangeFileInfo& info) {
  const SegmentSpec& segment = info.header.segment;
  const ContextIdentity& identity = segment.model.identity;
  std::string tokens = WithCommas(segment.end);
  if (segment.gold_position < segment.end) {
    absl::StrAppend(&tokens, "; the GOLD layers have run ", WithCommas(segment.gold_position), " of them");
  }
  return Columns(
             {{"file", absl::StrCat(SafeText(path), ", ", HumanBytes(info.header.file_bytes), ": right")},
              {"sha256", Sha256Text(info)},
              {"model", SafeText(identity.fingerprint)},
              {"vocabulary", absl::StrCat(SafeText(identity.vocabulary), " of ", WithCommas(segment.model.vocab_size))},
              {"cache", SafeText(identity.cache_dtype)},
              {"computed", SafeText(identity.numerics)},
              {"tokens", tokens}}) +
         "\n" + PartsTable(info.header);
}

nlohmann::json Json(const std::string& path, const ExchangeFileInfo& info) {
  const SegmentSpec& segment = info.header.segment;
  const ContextIdentity& identity = segment.model.identity;
  nlohmann::json json = {{"file", path},
                         {"file_bytes", info.header.file_bytes},
                         {"sha256", Sha256Text(info)},
                         {"format_version", identity.format_version},
                         {"fingerprint", identity.fingerprint},
                         {"vocabulary", identity.vocabulary},
                         {"vocab_size", segment.model.vocab_size},
                         {"cache_dtype", identity.cache_dtype},
                         {"numerics", identity.numerics},
                         {"tokens", segment.end},
                         {"gold_position", segment.gold_position},
                         {"tensors", nlohmann::json::array()}};
  for (const ExchangeTensor& tensor : info.header.tensors) {
    json["tensors"].push_back({{"name", tensor.name},
                               {"type", Name(info.header.layout.sections[tensor.section].type)},
                               {"offset", tensor.offset},
                               {"bytes", tensor.bytes}});
  }
  return json;
}

}  // namespace

absl::Status RunContextVerify(const ContextOptions& options) {
  GF_ASSIGN_OR_RETURN(const ExchangeFileInfo info, CheckExchangeFile(options.file));
  if (options.json) {
    std::cout << JsonText(Json(options.file, info), 2) << "\n";
  } else {
    std::cout << Table(options.file, info);
  }
  return absl::OkStatus();
}

}  // namespace goldfinch
