#include "coordinator/membership/worker_messages.h"

#include <arpa/inet.h>

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "base/stage_extent.h"
#include "base/state_part_kind.h"
#include "base/status.h"
#include "base/transports.h"
#include "google/protobuf/descriptor.h"
#include "protos/cluster.pb.h"
#include "protos/cluster_protocol.h"
#include "protos/wire_fields.h"

namespace goldfinch {
namespace {

constexpr uint64_t kLargeBytesMax = uint64_t{1} << 44;   // of a model or a device
constexpr uint64_t kBytesMax = uint64_t{1} << 28;        // of a sequence, a token or a row
constexpr uint64_t kTokenBytesMax = uint64_t{1} << 26;   // in all caches of one token; times kCacheTokensMax it is 2^62
constexpr uint64_t kMemoryBytesMax = uint64_t{1} << 50;  // of a worker
constexpr uint64_t kLayersMax = kModelLayersMax;
constexpr uint64_t kWidthMax = uint64_t{1} << 24;
constexpr uint64_t kResultsMax = uint64_t{1} << 20;
constexpr uint64_t kTopMax = 1024;
constexpr uint64_t kDropsMax = uint64_t{1} << 53;
constexpr uint64_t kSequencesMax = uint64_t{1} << 20;
constexpr double kSecondsMax = 1e9;  // Membership lowers them to what can have passed
constexpr double kRateMax = 1e18;
constexpr size_t kWordBytesMax = 64;  // kinds, fingerprints, parts of the memory
constexpr size_t kAddressBytesMax = 1024;
constexpr uint64_t kThreadsMax = uint64_t{1} << 16;
constexpr uint64_t kAddressesMax = kLayersMax;  // one a stage
constexpr uint64_t kMemoryPartsMax = 64;
constexpr uint64_t kSnapshotCopiesMax = 16;
constexpr uint64_t kShapeNumbersMax = 3;
constexpr uint64_t kPartsMax = uint64_t{1} << 16;  // of a segment
constexpr uint64_t kStagePartsMax = 4096;

struct Field {
  const char* name;
  uint64_t value;
};
struct RealField {
  const char* name;
  double value;
};
struct TextField {
  const char* name;
  const std::string& text;
};

absl::Status CheckRange(std::string_view prefix, uint64_t least, uint64_t most, std::initializer_list<Field> fields) {
  for (const Field& field : fields) {
    if (field.value >= least && field.value <= most) continue;
    const std::string range = least == most ? absl::StrCat(most) : absl::StrCat(least, " to ", most);
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(prefix), field.name, " is ", field.value, ", expected ", range));
  }
  return absl::OkStatus();
}

absl::Status CheckAtMost(std::string_view prefix, uint64_t most, std::initializer_list<Field> fields) {
  return CheckRange(prefix, 0, most, fields);
}

// NaN is refused, too.
absl::Status CheckReals(std::string_view prefix, double most, std::initializer_list<RealField> fields) {
  for (const RealField& field : fields) {
    if (field.value >= 0 && field.value <= most) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(prefix), field.name, " is ", field.value, ", expected 0 to ", most));
  }
  return absl::OkStatus();
}

absl::Status CheckTexts(std::string_view prefix, size_t bytes_max, std::initializer_list<TextField> fields) {
  for (const TextField& field : fields) {
    if (field.text.size() <= bytes_max) continue;
    return absl::InvalidArgumentError(
        absl::StrCat(std::string(prefix), field.name, " has ", field.text.size(), " bytes, the limit is ", bytes_max));
  }
  return absl::OkStatus();
}

absl::Status CheckOneOf(const char* name, const std::string& text, absl::Span<const std::string_view> allowed) {
  if (std::find(allowed.begin(), allowed.end(), text) != allowed.end()) return absl::OkStatus();
  GF_RETURN_IF_ERROR(CheckTexts("", kWordBytesMax, {{name, text}}));
  std::string names;
  for (const std::string_view one : allowed) {
    absl::StrAppend(&names, names.empty() ? "\"" : ", \"", std::string(one), "\"");
  }
  return absl::InvalidArgumentError(absl::StrCat(name, " is \"", text, "\", expected one of ", names));
}

// Other workers look for their route to it.
absl::Status CheckIpAddress(const char* name, const std::string& text) {
  const std::string number = text.substr(0, text.find('%'));  // without the interface of a link-local address
  in6_addr bytes{};
  const auto is = [&](int family) { return inet_pton(family, number.c_str(), &bytes) == 1; };
  if (text.empty() || is(AF_INET) || is(AF_INET6)) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " is \"", text, "\", expected an IP address"));
}

absl::Status CheckRegister(const cluster::v1::Register& message) {
  GF_RETURN_IF_ERROR(CheckTexts("", kWorkerNameBytesMax, {{"name", message.name()}}));
  GF_RETURN_IF_ERROR(CheckTexts("", kWorkerDeviceBytesMax, {{"device", message.device()}}));
  GF_RETURN_IF_ERROR(CheckOneOf("transport", message.transport(), TransportNames()));
  GF_RETURN_IF_ERROR(CheckTexts("", kHashBytesMax,
                                {{"memory_pool", message.memory_pool()},
                                 {"cpu_pool", message.cpu_pool()},
                                 {"gpu", message.gpu()},
                                 {"address", message.address()},
                                 {"network", message.network()},
                                 {"process", message.process()}}));
  GF_RETURN_IF_ERROR(CheckIpAddress("address", message.address()));
  GF_RETURN_IF_ERROR(CheckTexts("", kWorkerNameBytesMax, {{"processor", message.processor()}}));
  GF_RETURN_IF_ERROR(CheckAtMost("", kThreadsMax, {{"threads", message.threads()}}));
  GF_RETURN_IF_ERROR(CheckAtMost("", kMemoryBytesMax,
                                 {{"memory_bytes", message.memory_bytes()}, {"shelf_bytes", message.shelf_bytes()}}));
  GF_RETURN_IF_ERROR(CheckReals(
      "", kRateMax, {{"flops", message.flops()}, {"read_bytes_per_second", message.read_bytes_per_second()}}));
  // A speed of almost nothing would make times infinite.
  if (message.flops() >= 1 && message.read_bytes_per_second() >= 1) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("the measured speed is below 1: flops is ", message.flops(),
                                                 ", read_bytes_per_second is ", message.read_bytes_per_second()));
}

absl::Status CheckLayer(std::string_view prefix, const cluster::v1::LayerDescription& layer) {
  GF_RETURN_IF_ERROR(CheckTexts(prefix, kWordBytesMax, {{"kind", layer.kind()}}));
  GF_RETURN_IF_ERROR(CheckAtMost(prefix, kLargeBytesMax, {{"weight_bytes", layer.weight_bytes()}}));
  GF_RETURN_IF_ERROR(
      CheckAtMost(prefix, kBytesMax,
                  {{"state_bytes", layer.state_bytes()}, {"cache_bytes_per_token", layer.cache_bytes_per_token()}}));
  return CheckReals(prefix, kRateMax,
                    {{"prefill_flops", layer.prefill_flops()}, {"decode_bytes", layer.decode_bytes()}});
}

absl::Status CheckLayerMemory(std::string_view prefix, const cluster::v1::LayerMemory& layer,
                              const cluster::v1::LayerDescription& description) {
  GF_RETURN_IF_ERROR(CheckAtMost(prefix, kLargeBytesMax,
                                 {{"weight_bytes", layer.weight_bytes()}, {"table_bytes", layer.table_bytes()}}));
  GF_RETURN_IF_ERROR(CheckAtMost(prefix, kBytesMax,
                                 {{"shift_bytes", layer.shift_bytes()},
                                  {"wkv_bytes", layer.wkv_bytes()},
                                  {"activation_bytes", layer.activation_bytes()}}));
  return CheckRange(prefix, description.cache_bytes_per_token(), description.cache_bytes_per_token(),
                    {{"cache_bytes_per_token", layer.cache_bytes_per_token()}});
}

absl::Status CheckMemory(const cluster::v1::Described& model) {
  const cluster::v1::ModelMemory& memory = model.memory();
  const auto layers = static_cast<uint64_t>(model.layers_size());
  GF_RETURN_IF_ERROR(
      CheckRange("", layers, layers, {{"the number of memory.layers", static_cast<uint64_t>(memory.layers_size())}}));
  GF_RETURN_IF_ERROR(CheckAtMost("memory.", kLargeBytesMax,
                                 {{"embedding_bytes", memory.embedding_bytes()},
                                  {"gold_shared_bytes", memory.gold_shared_bytes()},
                                  {"key_table_bytes", memory.key_table_bytes()},
                                  {"head_bytes", memory.head_bytes()},
                                  {"back_end_bytes", memory.back_end_bytes()}}));
  GF_RETURN_IF_ERROR(CheckAtMost("memory.", kBytesMax,
                                 {{"compressed_row_bytes", memory.compressed_row_bytes()},
                                  {"back_end_bytes_per_row", memory.back_end_bytes_per_row()},
                                  {"back_end_bytes_per_logit_row", memory.back_end_bytes_per_logit_row()}}));
  GF_RETURN_IF_ERROR(CheckAtMost("memory.", kSnapshotCopiesMax, {{"snapshot_copies", memory.snapshot_copies()}}));
  for (int i = 0; i < memory.layers_size(); ++i) {
    GF_RETURN_IF_ERROR(CheckLayerMemory(absl::StrCat("memory.layers[", i, "]."), memory.layers(i), model.layers(i)));
  }
  return absl::OkStatus();
}

absl::Status CheckDescribed(const cluster::v1::Described& model) {
  GF_RETURN_IF_ERROR(CheckTexts("", kClusterTextBytesMax, {{"error", model.error()}}));
  if (!model.error().empty()) return absl::OkStatus();  // nothing else is looked at
  const auto layers = static_cast<uint64_t>(model.layers_size());
  GF_RETURN_IF_ERROR(CheckRange("", 1, kLayersMax, {{"the number of layers", layers}}));
  GF_RETURN_IF_ERROR(CheckRange("", 1, kWidthMax, {{"vocab_size", model.vocab_size()}}));
  GF_RETURN_IF_ERROR(
      CheckAtMost("", kWidthMax, {{"width", model.width()}, {"compressed_width", model.compressed_width()}}));
  GF_RETURN_IF_ERROR(CheckAtMost("", layers, {{"gold_layers", model.gold_layers()}}));
  GF_RETURN_IF_ERROR(CheckTexts("", kWordBytesMax, {{"fingerprint", model.fingerprint()}}));
  if (model.fingerprint().empty()) return absl::InvalidArgumentError("fingerprint is empty");
  GF_RETURN_IF_ERROR(CheckOneOf("vocabulary", model.vocabulary(), {"", "bytes", "world"}));
  GF_RETURN_IF_ERROR(CheckAtMost("", kLargeBytesMax,
                                 {{"embedding_bytes", model.embedding_bytes()},
                                  {"head_bytes", model.head_bytes()},
                                  {"gold_shared_bytes", model.gold_shared_bytes()}}));
  GF_RETURN_IF_ERROR(CheckAtMost("", kTokenBytesMax,
                                 {{"compressed_bytes_per_token", model.compressed_bytes_per_token()},
                                  {"transformer_cache_bytes_per_token", model.transformer_cache_bytes_per_token()}}));
  uint64_t token_bytes = model.compressed_bytes_per_token();
  for (int i = 0; i < model.layers_size(); ++i) {
    GF_RETURN_IF_ERROR(CheckLayer(absl::StrCat("layers[", i, "]."), model.layers(i)));
    token_bytes += model.layers(i).cache_bytes_per_token();
  }
  GF_RETURN_IF_ERROR(CheckAtMost("", kTokenBytesMax, {{"the cache of one token over all layers", token_bytes}}));
  return CheckMemory(model);
}

absl::Status CheckPartName(std::string_view prefix, const cluster::v1::PartName& part) {
  GF_RETURN_IF_ERROR(CheckAtMost(prefix, kLayersMax - 1, {{"layer", part.layer()}}));
  return CheckTexts(prefix, kPartKindBytesMax, {{"kind", part.kind()}});
}

std::vector<std::string_view> PartKindNames() {
  std::vector<std::string_view> names;
  for (const StatePartFacts& facts : kStatePartKinds) names.emplace_back(facts.name);
  return names;
}

absl::Status CheckPartDescription(const cluster::v1::PartDescription& part) {
  GF_RETURN_IF_ERROR(CheckPartName("parts.", part.part()));
  GF_RETURN_IF_ERROR(CheckOneOf("parts.kind", part.part().kind(), PartKindNames()));
  GF_RETURN_IF_ERROR(CheckOneOf("parts.dtype", part.dtype(), {"f32", "f16", "bf16", "u16", "i32", "int8"}));
  GF_RETURN_IF_ERROR(
      CheckAtMost("parts.", kShapeNumbersMax, {{"the number of shape", static_cast<uint64_t>(part.shape_size())}}));
  uint64_t bytes = 4;
  for (const uint64_t number : part.shape()) {
    GF_RETURN_IF_ERROR(CheckRange("parts.", 1, kWidthMax, {{"shape", number}}));
    bytes *= number;
    GF_RETURN_IF_ERROR(CheckAtMost("parts.", kBytesMax, {{"the size of shape", bytes}}));
  }
  return absl::OkStatus();
}

absl::Status CheckJoined(const cluster::v1::Joined& message) {
  GF_RETURN_IF_ERROR(
      CheckAtMost("", kAddressesMax, {{"the number of addresses", static_cast<uint64_t>(message.addresses_size())}}));
  for (const std::string& address : message.addresses()) {
    GF_RETURN_IF_ERROR(CheckTexts("", kAddressBytesMax, {{"an address", address}}));
  }
  GF_RETURN_IF_ERROR(CheckAtMost("", kLargeBytesMax, {{"weight_bytes", message.weight_bytes()}}));
  GF_RETURN_IF_ERROR(CheckAtMost("", kMemoryBytesMax, {{"reserved_bytes", message.reserved_bytes()}}));
  GF_RETURN_IF_ERROR(
      CheckAtMost("", kMemoryPartsMax, {{"the number of memory parts", static_cast<uint64_t>(message.memory_size())}}));
  for (const cluster::v1::MemoryPart& part : message.memory()) {
    GF_RETURN_IF_ERROR(CheckTexts("memory.", kWordBytesMax, {{"name", part.name()}}));
    GF_RETURN_IF_ERROR(CheckAtMost("memory.", kLargeBytesMax, {{"bytes", part.bytes()}}));
  }
  GF_RETURN_IF_ERROR(
      CheckAtMost("", kStagePartsMax, {{"the number of parts", static_cast<uint64_t>(message.parts_size())}}));
  for (const cluster::v1::PartDescription& part : message.parts()) GF_RETURN_IF_ERROR(CheckPartDescription(part));
  return CheckTexts("", kWordBytesMax, {{"numerics", message.numerics()}});
}

absl::Status CheckLinksMeasured(const cluster::v1::LinksMeasured& message) {
  GF_RETURN_IF_ERROR(
      CheckAtMost("", kLayersMax, {{"the number of links", static_cast<uint64_t>(message.links_size())}}));
  for (const cluster::v1::MeasuredLink& link : message.links()) {
    GF_RETURN_IF_ERROR(CheckAtMost("links.", kLayersMax - 1, {{"stage", link.stage()}}));
    GF_RETURN_IF_ERROR(CheckReals("links.", kRateMax, {{"bytes_per_second", link.bytes_per_second()}}));
    GF_RETURN_IF_ERROR(CheckReals("links.", kSecondsMax, {{"round_trip_seconds", link.round_trip_seconds()}}));
    if (link.bytes_per_second() == 0 || link.bytes_per_second() >= 1) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("links.bytes_per_second is ", link.bytes_per_second(), ", expected 0, or 1 at least"));
  }
  return absl::OkStatus();
}

absl::Status CheckLogprobs(std::string_view prefix, const google::protobuf::RepeatedField<float>& logprobs) {
  const bool good = std::none_of(logprobs.begin(), logprobs.end(), [](float one) { return std::isnan(one); });
  return good ? absl::OkStatus() : absl::InvalidArgumentError(absl::StrCat(std::string(prefix), "logprobs has a NaN"));
}

absl::Status CheckResult(const cluster::v1::ChunkResult& result, uint64_t vocab_size) {
  GF_RETURN_IF_ERROR(CheckTexts("results.", kClusterTextBytesMax, {{"error", result.error()}}));
  GF_RETURN_IF_ERROR(CheckAtMost("results.", vocab_size - 1, {{"token", result.token()}}));
  GF_RETURN_IF_ERROR(CheckLogprobs("results.", result.logprobs()));
  for (const cluster::v1::TopLogprobs& top : result.top()) {
    const auto ids = static_cast<uint64_t>(top.ids_size());
    GF_RETURN_IF_ERROR(CheckAtMost("results.top.", kTopMax, {{"the number of ids", ids}}));
    GF_RETURN_IF_ERROR(
        CheckRange("results.top.", ids, ids, {{"the number of logprobs", static_cast<uint64_t>(top.logprobs_size())}}));
    for (const uint32_t id : top.ids()) GF_RETURN_IF_ERROR(CheckAtMost("results.top.", vocab_size - 1, {{"ids", id}}));
    GF_RETURN_IF_ERROR(CheckLogprobs("results.top.", top.logprobs()));
  }
  if (result.logits().size() % (vocab_size * sizeof(float)) == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("results.logits has ", result.logits().size(),
                                                 " bytes, which are no rows of ", vocab_size, " numbers"));
}

absl::Status CheckPiece(const cluster::v1::Piece& piece) {
  GF_RETURN_IF_ERROR(CheckPartName("piece.part.", piece.part()));
  GF_RETURN_IF_ERROR(CheckTexts("piece.", kWordBytesMax, {{"dtype", piece.dtype()}}));
  GF_RETURN_IF_ERROR(CheckTexts("piece.", kPieceBytesMax, {{"data", piece.data()}}));
  GF_RETURN_IF_ERROR(
      CheckAtMost("piece.", kShapeNumbersMax, {{"the number of shape", static_cast<uint64_t>(piece.shape_size())}}));
  for (const uint64_t number : piece.shape()) {
    GF_RETURN_IF_ERROR(CheckAtMost("piece.", kWidthMax, {{"shape", number}}));
  }
  GF_RETURN_IF_ERROR(CheckAtMost("piece.", kCacheTokensMax, {{"end", piece.end()}}));
  GF_RETURN_IF_ERROR(
      CheckAtMost("piece.", piece.end(), {{"begin", piece.begin()}, {"gold_position", piece.gold_position()}}));
  return CheckAtMost("piece.", kLargeBytesMax, {{"offset", piece.offset()}});
}

absl::Status CheckEntries(const google::protobuf::Descriptor& type, google::protobuf::io::ZeroCopyInputStream* bytes) {
  int64_t left = kWorkerEntriesMax;
  const bool whole = ForEachWireField(
      type, bytes, [&left](const WireField& one) { return (one.field != nullptr && !one.sized) || --left >= 0; });
  if (whole) return absl::OkStatus();
  return absl::InvalidArgumentError(left < 0 ? absl::StrCat("it has more than ", kWorkerEntriesMax, " entries")
                                             : "the bytes are not a valid message");
}

}  // namespace

absl::Status CheckWorkerBytes(google::protobuf::io::ZeroCopyInputStream* bytes) {
  return CheckEntries(*cluster::v1::FromWorker::descriptor(), bytes);
}

absl::Status CheckShelfBytes(google::protobuf::io::ZeroCopyInputStream* bytes) {
  return CheckEntries(*cluster::v1::FromShelf::descriptor(), bytes);
}

absl::Status CheckShelfMessage(const cluster::v1::FromShelf& message) {
  using cluster::v1::FromShelf;
  switch (message.message_case()) {
    case FromShelf::kToken:
      return CheckRange("", 1, kHashBytesMax, {{"the size of token", message.token().size()}});
    case FromShelf::kPiece:
      return CheckPiece(message.piece());
    case FromShelf::kPutDone:
      GF_RETURN_IF_ERROR(CheckPartName("put_done.part.", message.put_done().part()));
      return CheckTexts("put_done.", kClusterTextBytesMax, {{"error", message.put_done().error()}});
    case FromShelf::kFetchDone:
      GF_RETURN_IF_ERROR(CheckAtMost("fetch_done.", kPartsMax, {{"parts", message.fetch_done().parts()}}));
      return CheckTexts("fetch_done.", kClusterTextBytesMax, {{"error", message.fetch_done().error()}});
    case FromShelf::MESSAGE_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("an empty or unknown message");
}

absl::Status CheckStepDone(const cluster::v1::StepDone& done, int64_t vocab_size) {
  GF_RETURN_IF_ERROR(CheckReals("", kSecondsMax,
                                {{"busy_seconds", done.busy_seconds()},
                                 {"bubble_seconds", done.bubble_seconds()},
                                 {"idle_seconds", done.idle_seconds()}}));
  GF_RETURN_IF_ERROR(CheckAtMost("", kLargeBytesMax,
                                 {{"hidden_bytes", done.hidden_bytes()},
                                  {"compressed_bytes", done.compressed_bytes()},
                                  {"id_bytes", done.id_bytes()},
                                  {"cache_bytes", done.cache_bytes()},
                                  {"gold_kept_bytes", done.gold_kept_bytes()}}));
  GF_RETURN_IF_ERROR(CheckAtMost("", kDropsMax, {{"gold_tier_drops", done.gold_tier_drops()}}));
  GF_RETURN_IF_ERROR(CheckAtMost("", kSequencesMax,
                                 {{"gold_compressed_sequences", done.gold_compressed_sequences()},
                                  {"gold_shared_sequences", done.gold_shared_sequences()},
                                  {"gold_full_sequences", done.gold_full_sequences()}}));
  GF_RETURN_IF_ERROR(CheckAtMost("", kCacheTokensMax, {{"cache_tokens", done.cache_tokens()}}));
  GF_RETURN_IF_ERROR(CheckAtMost("", kMemoryBytesMax, {{"shelf_bytes", done.shelf_bytes()}}));
  GF_RETURN_IF_ERROR(
      CheckAtMost("", kResultsMax, {{"the number of unsaved", static_cast<uint64_t>(done.unsaved_size())}}));
  GF_RETURN_IF_ERROR(
      CheckAtMost("", kResultsMax, {{"the number of results", static_cast<uint64_t>(done.results_size())}}));
  for (const cluster::v1::ChunkResult& result : done.results()) {
    GF_RETURN_IF_ERROR(CheckResult(result, static_cast<uint64_t>(vocab_size)));
  }
  return absl::OkStatus();
}

absl::Status CheckWorkerMessage(const cluster::v1::FromWorker& message) {
  using cluster::v1::FromWorker;
  switch (message.message_case()) {
    case FromWorker::kRegister:
      return CheckRegister(message.register_());
    case FromWorker::kDescribed:
      return CheckDescribed(message.described());
    case FromWorker::kJoined:
      return CheckJoined(message.joined());
    case FromWorker::kEndGeneration:
      return CheckTexts("", kClusterTextBytesMax, {{"reason", message.end_generation().reason()}});
    case FromWorker::kLinksMeasured:
      return CheckLinksMeasured(message.links_measured());
    case FromWorker::kReady:
    case FromWorker::kPong:
    case FromWorker::kLeaving:
      return absl::OkStatus();
    case FromWorker::kStepDone:
    case FromWorker::MESSAGE_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("an empty or unknown message");
}

}  // namespace goldfinch
