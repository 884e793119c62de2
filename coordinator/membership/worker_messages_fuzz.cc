// Two workers, one of which says whatever the bytes hold, to the validator, the membership with its planner, and the
// metrics: nothing makes a CHECK fail or a number overflow, and every text that comes out is short and on one line.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "coordinator/membership/membership.h"
#include "coordinator/membership/worker_messages.h"
#include "coordinator/metrics/metrics.h"
#include "coordinator/planner/split_advice.h"
#include "coordinator/scheduler/step.h"
#include "coordinator/scheduler/step_encoding.h"
#include "coordinator/shelves/shelf_group.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "protos/cluster.pb.h"
#include "protos/cluster_protocol.h"
#include "protos/generate.pb.h"

namespace goldfinch {
namespace {

using cluster::v1::FromWorker;
using cluster::v1::ToWorker;

constexpr uint64_t kHonest = 1, kFuzzed = 2;
constexpr size_t kTextBytesMax = 64 << 10;

void CheckText(const std::string& text) {
  GF_CHECK_LE(text.size(), kTextBytesMax);
  for (const char c : text) GF_CHECK(static_cast<unsigned char>(c) >= 0x20 && c != 0x7F);
}

FromWorker Registration() {
  FromWorker message;
  cluster::v1::Register& registration = *message.mutable_register_();
  registration.set_protocol(kClusterProtocol);
  registration.set_name("honest");
  registration.set_memory_bytes(uint64_t{1} << 40);
  registration.set_flops(1e9);
  registration.set_read_bytes_per_second(1e9);
  registration.set_transport("tcp");
  registration.set_memory_pool("pool");
  registration.set_cpu_pool("pool");
  registration.set_threads(4);
  registration.set_address("127.0.0.1");
  registration.set_network("network");
  registration.set_process("honest");
  return message;
}

cluster::v1::Described Model() {
  cluster::v1::Described model;
  for (int i = 0; i < 4; ++i) {
    model.add_layers()->set_kind("finch");
    model.mutable_layers(i)->set_weight_bytes(100);
    model.mutable_memory()->add_layers()->set_weight_bytes(100);
  }
  model.set_fingerprint("f");
  model.set_vocab_size(10);
  return model;
}

class Cluster {
 public:
  // `own`: the coordinator knows the model itself; else the first worker to describe one decides.
  explicit Cluster(bool own) : membership_(Options(own)) { Settle(); }

  void Connect(uint64_t worker) {
    membership_.Connected(worker, "10.0.0.7:1", now_);
    Settle();
  }

  void Receive(uint64_t worker, FromWorker message) {
    now_ += 0.05;
    if (message.has_step_done()) {
      const auto from = membership_.ReceivedStepDone(worker, message.mutable_step_done(), now_);
      if (from) Count(*from, message.mutable_step_done());
    } else {
      membership_.Received(worker, std::move(message), now_);
    }
    membership_.Tick(now_, {++ticks_ % 2 == 0});
    if (membership_.draining(0)) membership_.Drained(0, now_);
    Settle();
  }

 private:
  static MembershipOptions Options(bool own) {
    MembershipOptions options;
    options.stages = 2;
    options.network = "network";
    options.regrow_after_seconds = 0.02;
    options.partition.max_sequences = 1 << 16;  // the most that the flags allow
    options.partition.max_sequence_tokens = int64_t{1} << 30;
    options.partition.max_step_tokens = 1 << 16;
    options.partition.max_logit_rows = 1 << 16;
    options.workers_max = 4;
    options.replan = true;
    options.replan_after_seconds = 0.2;
    if (own) options.description = Model();
    return options;
  }

  void Count(const StageOfWorker& from, cluster::v1::StepDone* done) {
    GF_CHECK_LE(done->busy_seconds() + done->bubble_seconds() + done->idle_seconds(), now_);
    metrics_.AddStageSeconds(from.replica, from.stage,
                             {done->busy_seconds(), done->bubble_seconds(), done->idle_seconds()});
    metrics_.AddBoundaryBytes(from.replica, from.stage,
                              {static_cast<int64_t>(done->hidden_bytes()),
                               static_cast<int64_t>(done->compressed_bytes()), static_cast<int64_t>(done->id_bytes())});
    metrics_.SetTiers(from.replica, from.stage,
                      {done->gold_compressed_sequences(), done->gold_shared_sequences(), done->gold_full_sequences(),
                       static_cast<int64_t>(done->gold_tier_drops())});
    StepResult result;
    DecodeStepDone(done, &result);
    for (const StepResult::Chunk& chunk : result.chunks) CheckText(chunk.error);
  }

  void Settle() {
    for (;;) {
      MembershipEffects effects = membership_.TakeEffects();
      if (effects.sends.empty() && effects.closes.empty() && effects.events.empty() && effects.log.empty()) break;
      for (const std::string& line : effects.log) CheckText(line);
      for (const auto& [worker, message] : effects.sends) {
        CheckText(message.refused());
        if (worker == kHonest) Answer(message);
      }
      for (const MembershipEffects::Event& event : effects.events) {
        CheckText(event.reason);
        if (event.kind == MembershipEffects::Event::kModelKnown) membership_.SetVocabulary("v", "r", now_);
        if (event.kind == MembershipEffects::Event::kGenerationEnded) EndGroup(event.replica);
      }
    }
    v1::GetClusterInfoResponse info;
    membership_.FillClusterInfo(now_, &info);
    for (const v1::GroupInfo& group : info.groups()) CheckText(group.message());
    if (!membership_.has_model()) return;
    Metrics::Memory memory;
    memory.cache_bytes = membership_.CacheBytes(0);
    memory.gold_kept_bytes = membership_.GoldKeptBytes(0);
    memory.state_bytes = membership_.StateBytesPerSequence();
    memory.transformer_cache_bytes = membership_.TransformerCacheBytes(0);
    memory.cache_tokens_used = membership_.CacheTokens(0);
    GF_CHECK(memory.cache_bytes >= 0 && memory.gold_kept_bytes >= 0 && memory.state_bytes >= 0);
    GF_CHECK(memory.transformer_cache_bytes >= 0);
    metrics_.SetMemory(memory);
    if (!membership_.ready(0)) return;
    const std::optional<ShelfGroup> shelves = membership_.Shelves(0);
    GF_CHECK(!shelves || shelves->model.parts.size() <= 2 * 4096);
    const SplitQuestion question = membership_.QuestionOfSplit(0, {});
    for (const double speed : question.options.links.table) GF_CHECK(speed >= 1 && std::isfinite(speed));
    const SplitAdvice advice = AdviseOnSplit(question);
    GF_CHECK(advice.gain >= 0 && advice.gain <= 1);
    membership_.Advised(0, membership_.generation(0), advice, now_);
    std::vector<Metrics::Link> links;
    for (const Membership::LinkView& link : membership_.Links(0)) {
      GF_CHECK(link.from < link.to && link.to < static_cast<int>(question.workers.size()));
      links.push_back({link.from, link.to, link.bytes_per_second, link.round_trip_seconds});
    }
    metrics_.SetLinks(0, links);
  }

  void EndGroup(int replica) {
    metrics_.ClearTiers(replica);
    metrics_.ClearSplit(replica);
  }

  void Answer(const ToWorker& message) {
    FromWorker answer;
    if (message.has_welcome()) *answer.mutable_described() = Model();
    if (message.has_form()) {
      answer.mutable_joined()->set_generation(message.form().generation());
      for (int i = 0; i < message.form().first_layers_size(); ++i) answer.mutable_joined()->add_addresses("a");
    }
    if (message.has_connect()) answer.mutable_ready()->set_generation(message.connect().generation());
    if (message.has_measure_links()) {
      answer.mutable_links_measured()->set_generation(message.measure_links().generation());
    }
    if (answer.message_case() != FromWorker::MESSAGE_NOT_SET) membership_.Received(kHonest, std::move(answer), now_);
  }

  double now_ = 0;
  int ticks_ = 0;
  Membership membership_;
  Metrics metrics_{"fuzz"};
};

// Messages of a Contexts stream: what passes keeps its limits.
void ReadShelf(const uint8_t* data, size_t size) {
  for (size_t at = 0; at + 2 <= size;) {
    const size_t bytes = std::min<size_t>(data[at] | data[at + 1] << 8, size - at - 2);
    cluster::v1::FromShelf message;
    google::protobuf::io::ArrayInputStream input(data + at + 2, static_cast<int>(bytes));
    if (CheckShelfBytes(&input).ok() && message.ParseFromArray(data + at + 2, static_cast<int>(bytes))) {
      const absl::Status status = CheckShelfMessage(message);
      GF_CHECK_LE(status.message().size(), kTextBytesMax);
      if (status.ok() && message.has_piece()) {
        const cluster::v1::Piece& piece = message.piece();
        GF_CHECK(piece.begin() <= piece.end() && piece.gold_position() <= piece.end());
        GF_CHECK_LE(piece.data().size(), kPieceBytesMax);
        GF_CHECK_LE(piece.shape_size(), 3);
        for (const uint64_t number : piece.shape()) GF_CHECK_LE(number, uint64_t{1} << 24);
      }
    }
    at += 2 + bytes;
  }
}

}  // namespace
}  // namespace goldfinch

// The first byte says what the coordinator knows and who comes first, or that the messages are those of a Contexts
// stream; then messages follow, each after its size in two bytes.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using goldfinch::kFuzzed;
  using goldfinch::kHonest;
  if (size == 0) return 0;
  const bool own = (data[0] & 1) != 0, honest_first = (data[0] & 2) != 0;
  if ((data[0] & 4) != 0) {
    goldfinch::ReadShelf(data + 1, size - 1);
    return 0;
  }
  goldfinch::Cluster cluster(own);
  const auto add_honest = [&] {
    cluster.Connect(kHonest);
    cluster.Receive(kHonest, goldfinch::Registration());
  };
  if (honest_first) add_honest();
  cluster.Connect(kFuzzed);
  bool honest = honest_first;
  for (size_t at = 1; at + 2 <= size;) {
    const size_t bytes = std::min<size_t>(data[at] | data[at + 1] << 8, size - at - 2);
    goldfinch::cluster::v1::FromWorker message;
    google::protobuf::io::ArrayInputStream input(data + at + 2, static_cast<int>(bytes));
    if (goldfinch::CheckWorkerBytes(&input).ok() && message.ParseFromArray(data + at + 2, static_cast<int>(bytes))) {
      cluster.Receive(kFuzzed, std::move(message));
    }
    at += 2 + bytes;
    if (!honest) add_honest();
    honest = true;
  }
  return 0;
}
