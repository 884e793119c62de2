// A membership for tests, and workers that do what they are told.
#ifndef GOLDFINCH_COORDINATOR_MEMBERSHIP_MEMBERSHIP_TEST_UTIL_H_
#define GOLDFINCH_COORDINATOR_MEMBERSHIP_MEMBERSHIP_TEST_UTIL_H_

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/check.h"
#include "coordinator/membership/membership.h"
#include "protos/cluster.pb.h"
#include "protos/cluster_protocol.h"

namespace goldfinch {

class TestCluster {
 public:
  explicit TestCluster(MembershipOptions options) : replicas(options.replicas), membership(std::move(options)) {}

  static MembershipOptions Options(int stages, int replicas = 1) {
    MembershipOptions options;
    options.stages = stages;
    options.replicas = replicas;
    options.partition.max_sequences = 4;
    options.partition.max_sequence_tokens = 100;
    return options;
  }

  static cluster::v1::FromWorker Register(const std::string& name) {
    cluster::v1::FromWorker message;
    message.mutable_register_()->set_protocol(kClusterProtocol);
    message.mutable_register_()->set_name(name);
    message.mutable_register_()->set_memory_bytes(int64_t{1} << 40);
    message.mutable_register_()->set_flops(1e9);
    message.mutable_register_()->set_read_bytes_per_second(1e9);
    message.mutable_register_()->set_transport("local");
    return message;
  }

  static cluster::v1::FromWorker Described(const std::string& fingerprint = "f") {
    cluster::v1::FromWorker message;
    for (int i = 0; i < 6; ++i) {
      cluster::v1::LayerDescription& layer = *message.mutable_described()->add_layers();
      layer.set_prefill_flops(1);
      layer.set_weight_bytes(100);
      message.mutable_described()->mutable_memory()->add_layers()->set_weight_bytes(100);
    }
    message.mutable_described()->set_transformer_cache_bytes_per_token(1000);
    message.mutable_described()->set_fingerprint(fingerprint);
    message.mutable_described()->set_vocab_size(10);
    return message;
  }

  // Connects; the worker answers from then on.
  void Add(uint64_t id, uint64_t memory_bytes = uint64_t{1} << 40) {
    Add(id, [memory_bytes](cluster::v1::Register& message) { message.set_memory_bytes(memory_bytes); });
  }
  // `edit` changes what it registers with; `address` is where the coordinator sees it.
  void Add(uint64_t id, const std::function<void(cluster::v1::Register&)>& edit,
           const std::string& address = "address") {
    membership.Connected(id, address, now);
    cluster::v1::FromWorker message = Register("w" + std::to_string(id));
    edit(*message.mutable_register_());
    membership.Received(id, message, now);
    Settle();
  }

  // Delivers what workers were sent, and their answers, until all is quiet.
  void Settle() {
    for (;;) {
      MembershipEffects effects = membership.TakeEffects();
      log.insert(log.end(), effects.log.begin(), effects.log.end());
      if (effects.sends.empty() && effects.events.empty() && effects.closes.empty()) return;
      for (const auto& [worker, message] : effects.sends) {
        sent[worker].push_back(message);
        if (!silent.contains(worker)) Answer(worker, message);
      }
      for (uint64_t worker : effects.closes) closed.push_back(worker);
      for (const MembershipEffects::Event& event : effects.events) {
        events.push_back(event);
        if (event.kind == MembershipEffects::Event::kModelKnown) membership.SetVocabulary("v", "r", now);
      }
    }
  }

  void Answer(uint64_t worker, const cluster::v1::ToWorker& message) {
    cluster::v1::FromWorker answer;
    if (message.has_welcome()) answer = described;
    if (message.has_ping()) {
      answer.mutable_pong()->set_number(message.ping().number());
      answer.mutable_pong()->set_progress(progress);
    }
    if (message.has_form() && failing.contains(worker)) {
      answer.mutable_end_generation()->set_generation(message.form().generation());
    } else if (message.has_form()) {
      answer.mutable_joined()->set_generation(message.form().generation());
      for (int peer = 0; peer < message.form().first_layers_size(); ++peer) {
        answer.mutable_joined()->add_addresses("from " + std::to_string(message.form().stage()) + " to " +
                                               std::to_string(peer));
      }
      if (edit_joined) edit_joined(worker, answer.mutable_joined());
    }
    if (message.has_connect() && (message.connect().addresses_size() == 1 || !apart.contains(worker))) {
      if (HasPeerApart(worker)) {
        answer.mutable_end_generation()->set_generation(message.connect().generation());
      } else {
        answer.mutable_ready()->set_generation(message.connect().generation());
      }
    }
    if (answer.message_case() != cluster::v1::FromWorker::MESSAGE_NOT_SET) membership.Received(worker, answer, now);
  }

  void Tick(double seconds, bool idle = false) {
    now += seconds;
    membership.Tick(now, std::vector<bool>(8, idle));
    Settle();
  }

  // Whether the worker of the stage before or after this one is apart.
  bool HasPeerApart(uint64_t worker) {
    for (int replica = 0; replica < replicas; ++replica) {
      const std::vector<uint64_t> stages = Stages(replica);
      for (size_t i = 0; i + 1 < stages.size(); ++i) {
        if (stages[i] == worker && apart.contains(stages[i + 1])) return true;
        if (stages[i + 1] == worker && apart.contains(stages[i])) return true;
      }
    }
    return false;
  }

  // The last Form that the worker got.
  const cluster::v1::Form& LastForm(uint64_t worker) {
    const auto& messages = sent[worker];
    const auto form =
        std::find_if(messages.rbegin(), messages.rend(), [](const cluster::v1::ToWorker& m) { return m.has_form(); });
    GF_CHECK(form != messages.rend());
    return form->form();
  }

  std::string RefusalOf(uint64_t worker) { return sent[worker].empty() ? "" : sent[worker].back().refused(); }

  std::vector<uint64_t> Stages(int replica = 0) {
    std::vector<uint64_t> workers;
    for (const auto& stage : membership.stages(replica)) workers.push_back(stage.worker);
    return workers;
  }

  int Count(MembershipEffects::Event::Kind kind) const {
    return static_cast<int>(
        std::count_if(events.begin(), events.end(), [&](const MembershipEffects::Event& e) { return e.kind == kind; }));
  }

  double now = 0;
  const int replicas;
  Membership membership;
  std::map<uint64_t, std::vector<cluster::v1::ToWorker>> sent;
  std::set<uint64_t> silent;
  uint64_t progress = 0;       // what Pongs say
  std::set<uint64_t> failing;  // these cannot become stages
  std::set<uint64_t> apart;    // these join groups, and no other stage reaches them
  std::vector<uint64_t> closed;
  std::vector<MembershipEffects::Event> events;
  std::vector<std::string> log;
  cluster::v1::FromWorker described = Described();                                // what workers answer to Welcome
  std::function<void(uint64_t worker, cluster::v1::Joined* joined)> edit_joined;  // may be null
};

}  // namespace goldfinch

#endif  // GOLDFINCH_COORDINATOR_MEMBERSHIP_MEMBERSHIP_TEST_UTIL_H_
