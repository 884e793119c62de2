// What a faulty or hostile worker may say to the membership: it is dropped with a reason, and nothing else happens.
#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/membership/membership.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"
#include "protos/cluster_protocol.h"
#include "protos/generate.pb.h"

namespace goldfinch {
namespace {

using cluster::v1::FromWorker;
using cluster::v1::ToWorker;
using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using Event = MembershipEffects::Event;

constexpr int kLayers = 6;

FromWorker Register(const std::string& name) {
  FromWorker message;
  message.mutable_register_()->set_protocol(kClusterProtocol);
  message.mutable_register_()->set_name(name);
  message.mutable_register_()->set_memory_bytes(int64_t{1} << 40);
  message.mutable_register_()->set_flops(1e9);
  message.mutable_register_()->set_read_bytes_per_second(1e9);
  message.mutable_register_()->set_transport("tcp");
  return message;
}

cluster::v1::Described Model(int layers = kLayers) {
  cluster::v1::Described model;
  for (int i = 0; i < layers; ++i) {
    model.add_layers()->set_kind("finch");
    model.mutable_layers(i)->set_prefill_flops(1);
    model.mutable_memory()->add_layers()->set_weight_bytes(100);
  }
  model.set_fingerprint("f");
  model.set_vocab_size(10);
  model.set_vocabulary("bytes");
  return model;
}

FromWorker Described(const cluster::v1::Described& model) {
  FromWorker message;
  *message.mutable_described() = model;
  return message;
}

class MembershipHostileTest : public testing::Test {
 protected:
  static MembershipOptions Options() {
    MembershipOptions options;
    options.stages = 2;
    options.partition.max_sequences = 4;
    options.partition.max_sequence_tokens = 100;
    options.description = Model();
    options.secret = "secret";
    return options;
  }

  void Start(MembershipOptions options) {
    membership = std::make_unique<Membership>(std::move(options));
    Settle();
  }

  // Keeps what happens.
  void Settle() {
    for (;;) {
      MembershipEffects effects = membership->TakeEffects();
      if (effects.sends.empty() && effects.events.empty() && effects.closes.empty() && effects.log.empty()) return;
      for (auto& [worker, message] : effects.sends) sent.emplace_back(worker, std::move(message));
      log.insert(log.end(), effects.log.begin(), effects.log.end());
      for (const Event& event : effects.events) {
        events.push_back(event.kind);
        if (event.kind == Event::kModelKnown) membership->SetVocabulary("v", "r", now);
      }
    }
  }

  void Say(uint64_t id, const FromWorker& message) {
    membership->Received(id, message, now);
    Settle();
  }
  void Add(uint64_t id, const cluster::v1::Described& model = Model()) {
    membership->Connected(id, "10.0.0.7:1", now);
    Say(id, Register("w" + std::to_string(id)));
    Say(id, Described(model));
  }
  // The group of workers 1 and 2.
  void FormGroup() {
    Start(Options());
    Add(1);
    Add(2);
    for (const uint64_t id : {1, 2}) {
      FromWorker joined;
      joined.mutable_joined()->set_generation(1);
      joined.mutable_joined()->add_addresses("a");
      joined.mutable_joined()->add_addresses("b");
      Say(id, joined);
    }
    for (const uint64_t id : {1, 2}) {
      FromWorker ready;
      ready.mutable_ready()->set_generation(1);
      Say(id, ready);
    }
    ASSERT_TRUE(membership->ready(0));
  }

  std::string RefusalOf(uint64_t id) const {
    for (const auto& [worker, message] : sent) {
      if (worker == id && message.has_refused()) return message.refused();
    }
    return "";
  }

  double now = 0;
  std::unique_ptr<Membership> membership;
  std::vector<std::pair<uint64_t, ToWorker>> sent;
  std::vector<std::string> log;
  std::vector<Event::Kind> events;
};

TEST_F(MembershipHostileTest, TheModelIsTheCoordinatorsOwn) {
  Start(Options());
  EXPECT_THAT(events, ElementsAre(Event::kModelKnown)) << "no worker is needed for it";
  cluster::v1::Described other = Model();
  other.set_fingerprint("another");
  other.set_vocabulary("world");
  Add(1, other);
  EXPECT_THAT(RefusalOf(1),
              HasSubstr("it has another model: fingerprint is \"another\", the cluster's model has \"f\""));
  EXPECT_EQ(membership->model().fingerprint(), "f");
  Add(2);
  EXPECT_EQ(RefusalOf(2), "") << "the honest worker is not turned away";
  EXPECT_EQ(membership->workers(), 1);
}

TEST_F(MembershipHostileTest, EveryFieldOfADescriptionIsCompared) {
  using Edit = std::function<void(cluster::v1::Described&)>;
  const std::pair<Edit, std::string> kCases[] = {
      {[](auto& m) { m.set_width(7); }, "width is 7, the cluster's model has 0"},
      {[](auto& m) { m.set_vocab_size(11); }, "vocab_size is 11, the cluster's model has 10"},
      {[](auto& m) { m.set_vocabulary("world"); }, "vocabulary is \"world\", the cluster's model has \"bytes\""},
      {[](auto& m) { m.set_gold_layers(1); }, "gold_layers is 1,"},
      {[](auto& m) { m.set_embedding_bytes(1); }, "embedding_bytes is 1,"},
      {[](auto& m) { m.set_head_bytes(1); }, "head_bytes is 1,"},
      {[](auto& m) { m.set_gold_shared_bytes(1); }, "gold_shared_bytes is 1,"},
      {[](auto& m) { m.set_compressed_width(1); }, "compressed_width is 1,"},
      {[](auto& m) { m.set_compressed_bytes_per_token(1); }, "compressed_bytes_per_token is 1,"},
      {[](auto& m) { m.set_transformer_cache_bytes_per_token(1); }, "transformer_cache_bytes_per_token is 1,"},
      {[](auto& m) { m.mutable_layers(3)->set_kind("gold"); },
       "layers[3].kind is \"gold\", the cluster's model has \"finch\""},
      {[](auto& m) { m.mutable_layers(3)->set_weight_bytes(1); }, "layers[3].weight_bytes is 1,"},
      {[](auto& m) { m.mutable_layers(3)->set_state_bytes(1); }, "layers[3].state_bytes is 1,"},
      {[](auto& m) {
         m.mutable_layers(3)->set_cache_bytes_per_token(1);
         m.mutable_memory()->mutable_layers(3)->set_cache_bytes_per_token(1);
       },
       "layers[3].cache_bytes_per_token is 1,"},
      {[](auto& m) { m.mutable_layers(3)->set_prefill_flops(2); }, "layers[3].prefill_flops is 2,"},
      {[](auto& m) { m.mutable_layers(3)->set_decode_bytes(2); }, "layers[3].decode_bytes is 2,"},
      {[](auto& m) { m = Model(5); }, "the number of layers is 5, the cluster's model has 6"},
      {[](auto& m) { m = Model(7); }, "the number of layers is 7, the cluster's model has 6"},
  };
  Start(Options());
  uint64_t id = 0;
  for (const auto& [edit, expected] : kCases) {
    cluster::v1::Described model = Model();
    edit(model);
    Add(++id, model);
    EXPECT_THAT(RefusalOf(id), HasSubstr(expected));
  }
  EXPECT_EQ(membership->workers(), 0);
  cluster::v1::Described other_device = Model();
  other_device.mutable_memory()->set_back_end_bytes(99);
  Add(++id, other_device);
  EXPECT_EQ(RefusalOf(id), "") << "what a device takes of memory may differ";
}

// The planner read past the end of the first worker's layers.
TEST_F(MembershipHostileTest, FewerLayersWithTheSameFingerprint) {
  MembershipOptions options = Options();
  options.description.reset();
  options.fingerprint = "f";
  Start(std::move(options));
  Add(1, Model(6));
  Add(2, Model(2));
  EXPECT_THAT(RefusalOf(2), HasSubstr("the number of layers is 2, the cluster's model has 6"));
  cluster::v1::Described short_memory = Model(6);
  short_memory.mutable_memory()->mutable_layers()->RemoveLast();
  Add(3, short_memory);
  EXPECT_THAT(RefusalOf(3), HasSubstr("the number of memory.layers is 5, expected 6"));
}

TEST_F(MembershipHostileTest, WithAFingerprintAloneTheFirstWorkerWithItDescribesTheModel) {
  MembershipOptions options = Options();
  options.description.reset();
  options.fingerprint = "f";
  Start(std::move(options));
  EXPECT_FALSE(membership->has_model());
  cluster::v1::Described other = Model();
  other.set_fingerprint("another");
  Add(1, other);
  EXPECT_THAT(RefusalOf(1), HasSubstr("its fingerprint is another, model_fingerprint is f"));
  EXPECT_FALSE(membership->has_model());
  Add(2);
  ASSERT_TRUE(membership->has_model());
  membership->RejectModel("there is no vocabulary", now);
  Settle();
  EXPECT_EQ(RefusalOf(2), "there is no vocabulary");
  EXPECT_FALSE(membership->has_model());
}

TEST_F(MembershipHostileTest, FalseWorkersAreBoundedInNumber) {
  MembershipOptions options = Options();
  options.workers_max = 3;
  Start(std::move(options));
  for (uint64_t id = 1; id <= 300; ++id) membership->Connected(id, "a", now);
  Settle();
  EXPECT_EQ(membership->workers(), 3);
  EXPECT_EQ(RefusalOf(4), "the cluster has 3 workers already, which is the limit");
  EXPECT_EQ(RefusalOf(300), RefusalOf(4));
  // Those that never register are dropped.
  for (int i = 0; i < 12; ++i) {
    now += 0.5;
    membership->Tick(now, {true});
  }
  Settle();
  EXPECT_EQ(membership->workers(), 0);
}

TEST_F(MembershipHostileTest, AnswersToStepsThatCannotBe) {
  using Edit = std::function<void(cluster::v1::StepDone&)>;
  const std::pair<Edit, std::string> kCases[] = {
      {[](auto& m) { m.set_busy_seconds(-1); }, "busy_seconds is -1"},
      {[](auto& m) { m.set_bubble_seconds(std::numeric_limits<double>::quiet_NaN()); }, "bubble_seconds is nan"},
      {[](auto& m) { m.set_hidden_bytes(uint64_t{1} << 63); }, "hidden_bytes is 9223372036854775808"},
      {[](auto& m) { m.set_cache_tokens(1 << 20); }, "its caches have room for 1048576 tokens, "},
      {[](auto& m) { m.add_results()->set_token(10); }, "results.token is 10"},
      {[](auto& m) { m.add_results()->set_error(std::string(1 << 20, 'e')); }, "results.error has 1048576 bytes"},
  };
  for (const auto& [edit, expected] : kCases) {
    sent.clear();
    FormGroup();
    cluster::v1::StepDone done;
    done.set_generation(1);
    done.set_id(1);
    edit(done);
    EXPECT_FALSE(membership->ReceivedStepDone(2, &done, now).has_value());
    Settle();
    EXPECT_THAT(RefusalOf(2), HasSubstr(expected));
    EXPECT_FALSE(membership->ready(0));
    EXPECT_EQ(membership->workers(), 1) << "the other one is a spare again";
  }
}

TEST_F(MembershipHostileTest, ListsAndTextsAreBounded) {
  Start(Options());
  FromWorker joined, failed;
  for (int i = 0; i < 1 << 20; ++i) joined.mutable_joined()->add_addresses();
  failed.mutable_end_generation()->set_reason(std::string(1 << 20, 'r'));
  FromWorker named = Register("w");
  named.mutable_register_()->set_device(std::string(10 << 20, 'd'));
  uint64_t id = 0;
  for (const auto& [message, expected] :
       {std::pair(&joined, "the number of addresses is 1048576"), std::pair(&failed, "reason has 1048576 bytes"),
        std::pair(&named, "device has 10485760 bytes")}) {
    membership->Connected(++id, "a", now);
    if (message != &named) Say(id, Register("w"));
    Say(id, *message);
    EXPECT_THAT(RefusalOf(id), HasSubstr(expected));
  }
  EXPECT_EQ(membership->workers(), 0);
  for (const std::string& line : log) EXPECT_LT(line.size(), size_t{2048});
}

TEST_F(MembershipHostileTest, NamesAreWithinTheirLimitWhereTheyAreShown) {
  Start(Options());
  membership->Connected(1, "10.0.0.7:1", now);
  Say(1, Register(std::string(kWorkerNameBytesMax, '\x01')));
  Say(1, Described(Model()));
  v1::GetClusterInfoResponse info;
  membership->FillClusterInfo(now, &info);
  ASSERT_EQ(info.spare_workers_size(), 1);
  EXPECT_THAT(info.spare_workers(0), testing::StartsWith("\\x01\\x01"));
  EXPECT_LE(info.spare_workers(0).size(), kWorkerNameBytesMax);
}

TEST_F(MembershipHostileTest, TextsAreEscapedWhereverTheyGo) {
  Start(Options());
  FromWorker evil = Register("w\x1b[2J\n\xE2\x80\xAE");
  evil.mutable_register_()->set_device("cpu\r\nfake line");
  membership->Connected(1, "10.0.0.7:1", now);
  Say(1, evil);
  EXPECT_THAT(log, Contains(HasSubstr("worker w\\x1b[2J\\x0a\\u202e at 10.0.0.7:1: cpu\\x0d\\x0afake line")));
  Say(1, Described(Model()));
  v1::GetClusterInfoResponse info;
  membership->FillClusterInfo(now, &info);
  EXPECT_THAT(info.spare_workers(), ElementsAre("w\\x1b[2J\\x0a\\u202e"));
  // A reason that a worker gives is shown to clients, and in the log.
  Add(2);
  FromWorker failed;
  failed.mutable_end_generation()->set_generation(1);
  failed.mutable_end_generation()->set_reason("no\x07 memory");
  Say(2, failed);
  info.Clear();
  membership->FillClusterInfo(now, &info);
  EXPECT_THAT(info.groups(0).message(), HasSubstr("no\\x07 memory"));
  // So does what makes a message invalid.
  FromWorker other = Register("x");
  other.mutable_register_()->set_transport("\x1b]0;");
  membership->Connected(3, "a", now);
  Say(3, other);
  EXPECT_THAT(RefusalOf(3), HasSubstr("transport is \"\\x1b]0;\""));
  for (const std::string& line : log) {
    EXPECT_THAT(line, Not(HasSubstr("\x1b")));
    EXPECT_THAT(line, Not(HasSubstr("\n")));
  }
}

TEST_F(MembershipHostileTest, EveryGenerationHasAKeyOfItsOwn) {
  FormGroup();
  std::vector<std::string> keys;
  for (const auto& [worker, message] : sent) {
    if (message.has_form()) keys.push_back(message.form().transport_key());
  }
  ASSERT_EQ(keys.size(), 2U);
  EXPECT_EQ(keys[0].size(), 32U);
  EXPECT_EQ(keys[0], keys[1]) << "the stages of one generation share it";
  sent.clear();
  membership->EndGeneration(0, "a test", now);
  now += 1;
  membership->Tick(now, {true});
  Settle();
  std::string next;
  for (const auto& [worker, message] : sent) {
    if (message.has_form()) next = message.form().transport_key();
  }
  EXPECT_EQ(next.size(), 32U);
  EXPECT_NE(next, keys[0]);
}

}  // namespace
}  // namespace goldfinch
