#include "coordinator/planner/stage_cost.h"

#include <algorithm>
#include <string>

#include "base/check.h"
#include "base/stage_extent.h"
#include "base/token_ids.h"
#include "base/transports.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

constexpr double kFloatBytes = 4;  // of a number of a hidden row
// The most entries of what is remembered of the memory of ranges of layers: larger models are planned each time.
constexpr int64_t kRangesMax = int64_t{1} << 18;

// Seconds of an operation that computes and reads at once.
double Roofline(double operations, double bytes, const WorkerResources& worker) {
  return std::max(operations / worker.flops, bytes / worker.read_bytes_per_second);
}

double At(int64_t number) { return static_cast<double>(number); }

// Operations for each byte of weights that a row takes. GOLD layers do not say how many they have: their matrices have
// the type of the others.
double OperationsPerByte(const cluster::v1::Described& model, int finch_layers) {
  double operations = 0, bytes = 0;
  for (int i = 0; i < finch_layers; ++i) {
    operations += model.layers(i).prefill_flops();
    bytes += At(static_cast<int64_t>(model.layers(i).weight_bytes()));
  }
  return bytes > 0 ? operations / bytes : 1;
}

}  // namespace

double AssumedLinkSpeed(const std::string& transport) {
  const TransportFacts* const kind = FindTransport(transport);
  GF_CHECK(kind != nullptr);
  return kind->assumed_bytes_per_second;
}

ReceivedBytes ReceivedForRequest(const ModelMemory& model, absl::Span<const int> first_layers, int stage,
                                 int64_t prompt_tokens, int64_t output_tokens) {
  const int layers = static_cast<int>(model.layers.size());
  const StageExtent extent = StageExtentAt(first_layers, stage, layers, layers - model.gold_layers);
  // The last output token is not read.
  const int64_t tokens = prompt_tokens + output_tokens - 1;
  ReceivedBytes bytes;
  if (extent.receives_gold_hidden()) {
    // The pre-fill rule (worker/stage/prefill_rule.h). If it skips the beginning of the prompt, each GOLD layer before
    // has taken two rows off.
    const int64_t rows = TokenShiftReach(model.gold_layers) + 1;
    const int64_t prompt_rows =
        prompt_tokens > rows ? rows - TokenShiftReach(extent.gold_layers_before()) : prompt_tokens;
    bytes.hidden = (prompt_rows + output_tokens - 1) * model.width;
  } else if (extent.receives_hidden()) {
    bytes.hidden = tokens * model.width * (model.uses_side_rows && extent.receives_side() ? 2 : 1);
  }
  bytes.hidden *= static_cast<int64_t>(kFloatBytes);
  if (extent.receives_compressed()) {
    bytes.compressed = tokens * model.compressed_row_bytes;
    bytes.ids = tokens * IdBytes(model.vocab_size);
  }
  return bytes;
}

StageCosts::StageCosts(const cluster::v1::Described& model, absl::Span<const WorkerResources> workers,
                       const LinkSpeeds& links, const ExpectedTraffic& traffic, const StageLimits& limits)
    : workers_(workers),
      links_(links),
      traffic_(traffic),
      limits_(limits),
      layers_(model.layers_size()),
      finch_layers_(layers_ - static_cast<int>(model.gold_layers())),
      chunk_tokens_(At(std::min(traffic.prompt_tokens, limits.max_step_tokens))),
      // Each step has a part of the sequences of a pipeline, so that every stage has some to work on.
      batch_(At((traffic.sequences + stages() - 1) / stages())) {
  for (const WorkerResources& worker : workers_) {
    const auto same = std::find_if(kinds_.begin(), kinds_.end(), [&](const Kind& kind) {
      return kind.model == worker.model || *kind.model == *worker.model;
    });
    kind_of_.push_back(static_cast<int>(same - kinds_.begin()));
    if (same == kinds_.end()) kinds_.push_back({.model = worker.model, .channel_bytes = 0, .ranges = {}});
    sums_.push_back(SumsOf(model, worker));
    const ModelMemory& memory = *worker.model;
    head_.push_back(Roofline(2 * At(memory.vocab_size) * At(memory.width), At(memory.head_bytes) / batch_, worker));
    compress_.push_back(2 * At(memory.width) * At(memory.compressed_width) / worker.flops);
  }
  for (Kind& kind : kinds_) {
    if (At(layers_) * At(layers_ + 1) * At(static_cast<int64_t>(kinds_.size())) <= At(kRangesMax)) {
      kind.ranges.resize(static_cast<size_t>(layers_) * (layers_ + 1));
    }
    if (finch_layers_ == 0 || !has_gold()) continue;
    StageSettings settings = SettingsOf(0, finch_layers_ - 1, finch_layers_, 0);
    const auto bytes_with = [&](int later_stages) {
      settings.later_stages = later_stages;
      return PlanStageMemory(*kind.model, settings).total();
    };
    kind.channel_bytes = bytes_with(2) - bytes_with(1);
  }
  SetSending(model);
}

void StageCosts::SetSending(const cluster::v1::Described& model) {
  const ModelMemory& memory = *workers_[0].model;
  row_bytes_ = kFloatBytes * model.width();
  hidden_bytes_ = row_bytes_ * (memory.uses_side_rows ? 2 : 1);
  compressed_bytes_ = At(memory.compressed_row_bytes);
  send_next_.resize(stages());
  send_later_.resize(stages());
  for (int from = 0; from < stages(); ++from) {
    for (int to = from + 1; to < stages(); ++to) send_later_[from] += LinkSeconds(from, to);
    if (from + 1 < stages()) send_next_[from] = LinkSeconds(from, from + 1);
  }
}

// For a byte.
double StageCosts::LinkSeconds(int from, int to) const {
  const double speed =
      links_.table.empty() ? links_.bytes_per_second : links_.table[static_cast<size_t>(from) * stages() + to];
  return speed > 0 ? 1 / speed : 0;
}

std::vector<StageCosts::Sums> StageCosts::SumsOf(const cluster::v1::Described& model,
                                                 const WorkerResources& worker) const {
  const ModelMemory& memory = *worker.model;
  const double width = memory.width, context = At(traffic_.context_tokens), prompt = At(traffic_.prompt_tokens);
  const double outputs = At(traffic_.output_tokens - 1);
  // A row of a prompt attends to what is before it, half of the prompt on average.
  const double attended = std::max(context - prompt / 2, prompt / 2);
  const double per_byte = OperationsPerByte(model, finch_layers_);
  const double key_numbers = At(memory.vocab_size) * width;
  const double number_bytes =
      memory.key_table_bytes > 0 && key_numbers > 0 ? At(memory.key_table_bytes) / key_numbers : kFloatBytes;
  const double pair = 4 * width;  // operations of attention for a row and a position: both products, multiply-adds
  std::vector<Sums> sums(layers_ + 1);
  for (int i = 0; i < layers_; ++i) {
    const cluster::v1::LayerDescription& layer = model.layers(i);
    const LayerMemory& held = memory.layers[i];
    const double state = At(held.shift_bytes + held.wkv_bytes);
    // decode_bytes are of one sequence: what is left without its state is shared.
    const double weights = std::max(layer.decode_bytes() - static_cast<double>(layer.state_bytes()), 0.0);
    Sums& to = sums[i + 1];
    to = sums[i];
    if (i < finch_layers_) {
      const double cache = At(held.cache_bytes_per_token);  // keys and values; 0 for recurrent layers
      const double operations = layer.prefill_flops();
      to.read +=
          Roofline(operations + (cache > 0 ? pair * attended : 0),
                   (weights + 2 * state + cache * attended) / chunk_tokens_ + 2 * At(held.activation_bytes), worker);
      to.output += Roofline(operations + (cache > 0 ? pair * context : 0),
                            weights / batch_ + 2 * state + cache * context, worker);
      to.least += prompt * (to.read - sums[i].read) + outputs * (to.output - sums[i].output);
      continue;
    }
    const double rank = At(GoldLoraRank(memory, i)), compressed = At(memory.compressed_width);
    const double derive = 2 * width * (5 * rank + compressed), outer = 2 * width * 3 * rank;
    // Rows that the layer runs at a prompt's end: each of its two token shifts, and of those behind it, takes one off.
    const double rows = At(2 * (layers_ - 1 - i) + 3);
    to.output += Roofline(per_byte * weights, weights / batch_ + 2 * state, worker);
    to.attend_compressed += context * Roofline(pair + derive, At(memory.compressed_bytes_per_token), worker);
    to.attend_shared += context * Roofline(pair + outer, (2 * width + 3 * rank) * number_bytes, worker);
    to.attend_full += context * Roofline(pair, 2 * width * number_bytes, worker);
    to.derive += derive / worker.flops;
    to.outer += outer / worker.flops;
    to.tail += Roofline(rows * per_byte * weights, weights, worker) +
               context * Roofline(rows * pair, 2 * width * number_bytes, worker);
    // The prompt is no longer than the context, so what is derived while it is read takes less than at its end.
    const Sums& before = sums[i];
    const double attend = std::min({to.attend_compressed - before.attend_compressed,
                                    to.attend_shared - before.attend_shared, to.attend_full - before.attend_full});
    to.least +=
        prompt * (to.derive - before.derive) + to.tail - before.tail + outputs * (to.output - before.output + attend);
  }
  return sums;
}

StageSettings StageCosts::SettingsOf(int stage, int first, int last, int64_t cache_tokens) const {
  return {.first_layer = first,
          .last_layer = last,
          .later_stages = stages() - 1 - stage,
          .max_sequences = limits_.max_sequences,
          .cache_tokens = cache_tokens,
          .max_step_tokens = limits_.max_step_tokens,
          .max_logit_rows = limits_.max_logit_rows};
}

// With one later stage, unless the range ends with the last layer.
StageCosts::RangeMemory StageCosts::PlanRange(const Kind& kind, int first, int last) const {
  RangeMemory memory;
  StageSettings settings = SettingsOf(0, first, last, limits_.cache_tokens_least);
  settings.later_stages = last < layers_ ? 1 : 0;
  memory.least = PlanStageMemory(*kind.model, settings).total();
  memory.expected = memory.least;
  if (last <= finch_layers_) return memory;
  settings.cache_tokens = traffic_.context_tokens * traffic_.sequences;
  memory.expected = PlanStageMemory(*kind.model, settings).total();
  memory.per_token = KeptBytesPerToken(*kind.model, first, last);
  return memory;
}

StageCosts::RangeMemory StageCosts::MemoryOf(int stage, int first, int last) const {
  const Kind& kind = kinds_[kind_of_[stage]];
  RangeMemory memory;
  if (kind.ranges.empty()) {
    memory = PlanRange(kind, first, last);
  } else {
    RangeMemory& known = kind.ranges[static_cast<size_t>(first) * (layers_ + 1) + last];
    if (known.least < 0) known = PlanRange(kind, first, last);
    memory = known;
  }
  if (has_boundary(first, last) && last < layers_) {
    const int64_t more = kind.channel_bytes * std::max(stages() - 2 - stage, 0);
    memory.least += more;
    memory.expected += more;
  }
  return memory;
}

bool StageCosts::Fits(int stage, int first, int last) const {
  return MemoryOf(stage, first, last).least <= workers_[stage].memory_bytes;
}

StageCost StageCosts::Of(int stage, int first, int last) const {
  const Sums &begin = sums_[stage][first], &end = sums_[stage][last];
  const double prompt = At(traffic_.prompt_tokens), context = At(traffic_.context_tokens);
  const double outputs = At(traffic_.output_tokens - 1);  // the first is drawn at the prompt's end
  StageCost cost;
  double token = end.read - begin.read, output = end.output - begin.output, tail = 0;
  const RangeMemory memory = MemoryOf(stage, first, last);
  cost.memory_bytes = memory.expected;
  if (last > finch_layers_) {
    const int64_t positions = traffic_.context_tokens * traffic_.sequences;
    const int64_t left = workers_[stage].memory_bytes - memory.expected;
    // Where nothing is known of what tiers take, all is kept.
    cost.kept = memory.per_token.full > 0 ? ShareKeptBytes(memory.per_token, left, positions)
                                          : KeptTokens{.full = At(positions)};
    cost.memory_bytes += static_cast<int64_t>(
        std::min(cost.kept.shared * memory.per_token.shared + cost.kept.full * memory.per_token.full, 1e18));
    const double compressed = cost.kept.compressed / At(positions), shared = cost.kept.shared / At(positions);
    const double full = cost.kept.full / At(positions);
    const double derive = end.derive - begin.derive, outer = end.outer - begin.outer;
    // What is kept of the prompt is derived while it is read, the rest at its end.
    token += full * derive + shared * (derive - outer);
    tail = end.tail - begin.tail + context * (shared * outer + compressed * derive);
    output += compressed * (end.attend_compressed - begin.attend_compressed) +
              shared * (end.attend_shared - begin.attend_shared) + full * (end.attend_full - begin.attend_full);
  }
  if (has_boundary(first, last)) token += compress_[stage];
  double head = 0;
  if (last == layers_) {
    output += head_[stage];
    head = head_[stage];
  }
  // Bytes for a token of a prompt and for one of the output.
  double send_token = 0, send_output = 0;
  if (last < layers_) {
    send_output = (last < finch_layers_ ? hidden_bytes_ : row_bytes_) * send_next_[stage];
    if (last < finch_layers_ || !has_gold()) send_token = send_output;
    if (has_boundary(first, last)) {
      send_token += compressed_bytes_ * send_later_[stage];
      send_output += compressed_bytes_ * send_later_[stage];
    }
  }
  cost.compute_request = prompt * token + tail + head + outputs * output;
  cost.send_request = prompt * send_token + outputs * send_output;
  cost.request = std::max(cost.compute_request, cost.send_request);
  cost.token = std::max(token, send_token);
  cost.output_token = std::max(output, send_output);
  cost.first_token = chunk_tokens_ * (token + send_token) + tail + head;
  return cost;
}

}  // namespace goldfinch
