#include "worker/model/model_config.h"

#include <cmath>
#include <cstddef>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/small_file.h"
#include "base/status.h"
#include "nlohmann/json.hpp"
#include "yaml-cpp/yaml.h"

namespace goldfinch {
namespace {

// As JSON text, for messages; strings may be anything.
std::string Shown(const nlohmann::json& value) {
  return value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).substr(0, 100);
}

constexpr size_t kConfigBytesMax = 1 << 20;

// What the getters below read, as JSON: the scalars of a map, and of the map `rope` in it. Scalars of YAML stay
// strings. The rest is passed over: aliases can make a small file stand for a huge tree.
nlohmann::json ScalarsToJson(const YAML::Node& map) {
  nlohmann::json result = nlohmann::json::object();
  for (const auto& entry : map) {
    if (entry.first.IsScalar() && entry.second.IsScalar()) result[entry.first.Scalar()] = entry.second.Scalar();
  }
  return result;
}

nlohmann::json ToJson(const YAML::Node& settings) {
  if (!settings.IsMap()) return nullptr;
  nlohmann::json result = ScalarsToJson(settings);
  if (const YAML::Node rope = settings["rope"]; rope && rope.IsMap()) result["rope"] = ScalarsToJson(rope);
  return result;
}

class Reader {
 public:
  Reader(const std::string& path, const nlohmann::json& root) : path_(path), root_(root) {}

  // The number at `key`; nothing if the key is missing or null.
  absl::StatusOr<std::optional<double>> Number(const nlohmann::json& object, const char* key, double low,
                                               double high) const {
    const auto found = object.find(key);
    if (found == object.end() || found->is_null()) return std::nullopt;
    double value = NAN;
    if (found->is_boolean()) value = found->get<bool>() ? 1 : 0;
    if (found->is_number()) value = found->get<double>();
    if (found->is_string()) {
      const std::string text = found->get<std::string>();
      if (text == "true" || text == "false") {
        value = text == "true" ? 1 : 0;
      } else if (!absl::SimpleAtod(text, &value)) {
        value = NAN;
      }
    }
    if (!(value >= low && value <= high)) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": ", key, " is ", Shown(*found), ", expected a number from ", low, " to ", high));
    }
    return value;
  }

  absl::StatusOr<std::optional<int64_t>> Integer(const char* key, int64_t high) const {
    GF_ASSIGN_OR_RETURN(const std::optional<double> value, Number(root_, key, 1, static_cast<double>(high)));
    if (!value.has_value()) return std::nullopt;
    const auto integer = static_cast<int64_t>(*value);
    if (static_cast<double>(integer) != *value) {
      return absl::InvalidArgumentError(absl::StrCat(path_, ": ", key, " is ", *value, ", expected an integer"));
    }
    return integer;
  }

  absl::StatusOr<bool> Flag(const char* key) const {
    GF_ASSIGN_OR_RETURN(const std::optional<double> value, Number(root_, key, 0, 1));
    return value.value_or(1) != 0;
  }

  absl::StatusOr<ModelConfig> Read() const {
    ModelConfig config;
    GF_ASSIGN_OR_RETURN(config.layers, Integer("n_layer", 1000));
    GF_ASSIGN_OR_RETURN(config.width, Integer("n_embd", 1 << 17));
    GF_ASSIGN_OR_RETURN(config.vocab_size, Integer("vocab_size", 1 << 24));
    GF_ASSIGN_OR_RETURN(config.use_v2, Flag("use_v2"));
    GF_ASSIGN_OR_RETURN(config.use_one_minus_w, Flag("use_one_minus_w"));
    GF_ASSIGN_OR_RETURN(const std::optional<int64_t> head_size, Integer("head_size", 1024));
    if (head_size.has_value()) {
      if (*head_size % 16 != 0) {
        return absl::InvalidArgumentError(
            absl::StrCat(path_, ": head_size is ", *head_size, ", expected a multiple of 16"));
      }
      config.head_size = static_cast<int>(*head_size);
    }
    GF_ASSIGN_OR_RETURN(config.rope_base, Number(root_, "rope_base", 0, 1e12));
    if (const auto rope = root_.find("rope"); rope != root_.end() && rope->is_object()) {
      GF_ASSIGN_OR_RETURN(config.rope_base, Number(*rope, "base", 0, 1e12));
    }
    for (const auto& [key, value] : {std::pair("tmix", &config.tmix), std::pair("tmix2", &config.tmix2)}) {
      if (const auto found = root_.find(key); found != root_.end() && found->is_string())
        *value = found->get<std::string>();
    }
    if (const auto vocabulary = root_.find("vocabulary"); vocabulary != root_.end()) {
      if (*vocabulary != "bytes" && *vocabulary != "world") {
        return absl::InvalidArgumentError(
            absl::StrCat(path_, ": vocabulary is ", Shown(*vocabulary), ", expected \"bytes\" or \"world\""));
      }
      config.vocabulary = vocabulary->get<std::string>();
    }
    return config;
  }

 private:
  const std::string& path_;
  const nlohmann::json& root_;
};

}  // namespace

absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& path) {
  GF_ASSIGN_OR_RETURN(const std::string text, ReadSmallFile(path, kConfigBytesMax));
  nlohmann::json root;
  if (absl::EndsWith(path, ".yaml") || absl::EndsWith(path, ".yml")) {
    try {
      const YAML::Node yaml = YAML::Load(text);
      root = ToJson(yaml["model"] ? yaml["model"] : yaml);
    } catch (const YAML::Exception& error) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": not YAML: ", error.what()));
    }
  } else {
    // What is nested deeper than any setting is left out: to print it would take a deep stack.
    const auto is_shallow = [](int depth, nlohmann::json::parse_event_t, nlohmann::json&) { return depth < 16; };
    root = nlohmann::json::parse(text, is_shallow, /*allow_exceptions=*/false);
    if (root.is_discarded()) return absl::InvalidArgumentError(absl::StrCat(path, ": not JSON"));
  }
  if (!root.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": expected a map of settings"));
  return Reader(path, root).Read();
}

absl::StatusOr<ModelConfig> FindModelConfig(const std::string& explicit_path, const std::string& model_path) {
  if (!explicit_path.empty()) return ReadModelConfig(explicit_path);
  const std::filesystem::path model(model_path);
  std::error_code ignored;
  const std::filesystem::path folder = std::filesystem::is_directory(model, ignored) ? model : model.parent_path();
  const std::filesystem::path beside = folder / "config.json";
  if (!std::filesystem::exists(beside, ignored)) return ModelConfig{};
  return ReadModelConfig(beside.string());
}

}  // namespace goldfinch
