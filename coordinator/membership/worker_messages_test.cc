#include "coordinator/membership/worker_messages.h"

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "google/protobuf/io/zero_copy_stream_impl_lite.h"
#include "gtest/gtest.h"
#include "protos/cluster.pb.h"

namespace goldfinch {
namespace {

using cluster::v1::FromWorker;
using ::testing::HasSubstr;

constexpr int64_t kVocabSize = 10;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

FromWorker Register() {
  FromWorker message;
  cluster::v1::Register& registration = *message.mutable_register_();
  registration.set_name("w");
  registration.set_device("cpu");
  registration.set_transport("tcp");
  registration.set_memory_bytes(uint64_t{1} << 40);
  registration.set_flops(1e9);
  registration.set_read_bytes_per_second(1e9);
  return message;
}

FromWorker Described() {
  FromWorker message;
  cluster::v1::Described& model = *message.mutable_described();
  model.set_fingerprint("0123456789abcdef");
  model.set_vocab_size(kVocabSize);
  model.set_width(64);
  model.set_vocabulary("world");
  for (int i = 0; i < 3; ++i) {
    model.add_layers()->set_kind("finch");
    model.mutable_memory()->add_layers()->set_weight_bytes(100);
  }
  return message;
}

FromWorker Joined() {
  FromWorker message;
  message.mutable_joined()->add_addresses(std::string(136, 'a'));
  message.mutable_joined()->add_memory()->set_name("weights");
  return message;
}

cluster::v1::StepDone Done() {
  cluster::v1::StepDone done;
  done.set_busy_seconds(0.1);
  cluster::v1::ChunkResult& result = *done.add_results();
  result.set_token(kVocabSize - 1);
  result.add_logprobs(-std::numeric_limits<float>::infinity());
  result.add_top()->add_ids(3);
  result.mutable_top(0)->add_logprobs(-1);
  result.set_logits(std::string(2 * 4 * kVocabSize, '\0'));
  return done;
}

std::string ErrorOf(const absl::Status& status) {
  if (status.ok()) return "OK";
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  return std::string(status.message());
}

std::string ErrorOf(FromWorker message, const std::function<void(FromWorker&)>& edit) {
  edit(message);
  return ErrorOf(CheckWorkerMessage(message));
}

std::string ErrorOf(const std::function<void(cluster::v1::StepDone&)>& edit) {
  cluster::v1::StepDone done = Done();
  edit(done);
  return ErrorOf(CheckStepDone(done, kVocabSize));
}

FromWorker LinksMeasured() {
  FromWorker message;
  cluster::v1::MeasuredLink& link = *message.mutable_links_measured()->add_links();
  link.set_stage(1);
  link.set_bytes_per_second(1.2e9);
  link.set_round_trip_seconds(1e-4);
  message.mutable_links_measured()->add_links()->set_stage(2);
  return message;
}

TEST(WorkerMessagesTest, HonestMessagesPass) {
  FromWorker end, pong;
  end.mutable_end_generation()->set_reason("the device is lost");
  pong.mutable_pong();
  for (const FromWorker& message : {Register(), Described(), Joined(), LinksMeasured(), end, pong}) {
    EXPECT_EQ(CheckWorkerMessage(message), absl::OkStatus()) << message.ShortDebugString();
  }
  EXPECT_EQ(CheckStepDone(Done(), kVocabSize), absl::OkStatus());
  EXPECT_EQ(CheckStepDone({}, kVocabSize), absl::OkStatus());
}

TEST(WorkerMessagesTest, Links) {
  const auto error = [](const std::function<void(cluster::v1::MeasuredLink&)>& edit) {
    return ErrorOf(LinksMeasured(),
                   [&](FromWorker& message) { edit(*message.mutable_links_measured()->mutable_links(0)); });
  };
  EXPECT_EQ(error([](auto& m) { m.set_stage(1024); }), "links.stage is 1024, expected 0 to 1023");
  EXPECT_EQ(error([](auto& m) { m.set_bytes_per_second(kNaN); }), "links.bytes_per_second is nan, expected 0 to 1e+18");
  EXPECT_EQ(error([](auto& m) { m.set_bytes_per_second(-1); }), "links.bytes_per_second is -1, expected 0 to 1e+18");
  EXPECT_EQ(error([](auto& m) { m.set_bytes_per_second(1e-300); }),
            "links.bytes_per_second is 1e-300, expected 0, or 1 at least");
  EXPECT_EQ(error([](auto& m) { m.set_round_trip_seconds(kInfinity); }),
            "links.round_trip_seconds is inf, expected 0 to 1e+09");
  EXPECT_EQ(ErrorOf(LinksMeasured(),
                    [](FromWorker& message) {
                      for (int i = 0; i < 1023; ++i) message.mutable_links_measured()->add_links();
                    }),
            "the number of links is 1025, expected 0 to 1024");
}

TEST(WorkerMessagesTest, EmptyMessages) {
  EXPECT_EQ(ErrorOf(CheckWorkerMessage({})), "an empty or unknown message");
  FromWorker step;
  step.mutable_step_done();
  EXPECT_EQ(ErrorOf(CheckWorkerMessage(step)), "an empty or unknown message");
}

TEST(WorkerMessagesTest, Registrations) {
  const auto error = [](const std::function<void(cluster::v1::Register&)>& edit) {
    return ErrorOf(Register(), [&](FromWorker& message) { edit(*message.mutable_register_()); });
  };
  EXPECT_EQ(error([](auto& m) { m.set_name(std::string(257, 'n')); }), "name has 257 bytes, the limit is 256");
  EXPECT_EQ(error([](auto& m) { m.set_device(std::string(10 << 20, 'd')); }),
            "device has 10485760 bytes, the limit is 512");
  EXPECT_EQ(error([](auto& m) { m.set_transport("pigeon"); }),
            "transport is \"pigeon\", expected one of \"local\", \"tcp\", \"nccl\"");
  EXPECT_EQ(error([](auto& m) { m.set_transport(std::string(1000, 't')); }),
            "transport has 1000 bytes, the limit is 64");
  EXPECT_THAT(error([](auto& m) { m.set_memory_bytes(uint64_t{1} << 63); }),
              HasSubstr("memory_bytes is 9223372036854"));
  const std::string long_hash(65, 'h');
  EXPECT_EQ(error([&](auto& m) { m.set_memory_pool(long_hash); }), "memory_pool has 65 bytes, the limit is 64");
  EXPECT_EQ(error([&](auto& m) { m.set_cpu_pool(long_hash); }), "cpu_pool has 65 bytes, the limit is 64");
  EXPECT_EQ(error([&](auto& m) { m.set_gpu(long_hash); }), "gpu has 65 bytes, the limit is 64");
  EXPECT_EQ(error([&](auto& m) { m.set_address(long_hash); }), "address has 65 bytes, the limit is 64");
  EXPECT_EQ(error([&](auto& m) { m.set_network(long_hash); }), "network has 65 bytes, the limit is 64");
  EXPECT_EQ(error([&](auto& m) { m.set_process(long_hash); }), "process has 65 bytes, the limit is 64");
  EXPECT_EQ(error([](auto& m) { m.set_processor(std::string(257, 'p')); }),
            "processor has 257 bytes, the limit is 256");
  EXPECT_EQ(error([](auto& m) { m.set_threads(70'000); }), "threads is 70000, expected 0 to 65536");
  EXPECT_EQ(error([](auto& m) { m.set_address("a.name"); }), "address is \"a.name\", expected an IP address");
  for (const char* address : {"10.0.0.7", "::1", "2001:db8::7", "fe80::1%eth0"}) {
    EXPECT_EQ(error([&](auto& m) { m.set_address(address); }), "OK") << address;
  }
  for (const double speed : {0.0, -1.0, 1e-300, kNaN, kInfinity, 1e300}) {
    EXPECT_THAT(error([&](auto& m) { m.set_flops(speed); }), HasSubstr("flops is ")) << speed;
    EXPECT_THAT(error([&](auto& m) { m.set_read_bytes_per_second(speed); }), HasSubstr("read_bytes_per_second is "));
  }
}

TEST(WorkerMessagesTest, Descriptions) {
  const auto error = [](const std::function<void(cluster::v1::Described&)>& edit) {
    return ErrorOf(Described(), [&](FromWorker& message) { edit(*message.mutable_described()); });
  };
  EXPECT_EQ(error([](auto& m) { m.set_error(std::string(1 << 20, 'e')); }),
            "error has 1048576 bytes, the limit is 4096");
  EXPECT_EQ(error([](auto& m) { m.set_vocab_size(0); }), "vocab_size is 0, expected 1 to 16777216");
  EXPECT_EQ(error([](auto& m) { m.set_vocabulary("latin"); }),
            "vocabulary is \"latin\", expected one of \"\", \"bytes\", \"world\"");
  EXPECT_EQ(error([](auto& m) { m.set_gold_layers(4); }), "gold_layers is 4, expected 0 to 3");
  EXPECT_EQ(error([](auto& m) { m.clear_layers(); }), "the number of layers is 0, expected 1 to 1024");
  EXPECT_EQ(error([](auto& m) { m.clear_fingerprint(); }), "fingerprint is empty");
  EXPECT_EQ(error([](auto& m) { m.set_fingerprint(std::string(65, 'f')); }),
            "fingerprint has 65 bytes, the limit is 64");
  EXPECT_EQ(error([](auto& m) { m.mutable_layers(2)->set_kind(std::string(65, 'k')); }),
            "layers[2].kind has 65 bytes, the limit is 64");
  for (const double bad : {-1.0, kNaN, kInfinity, 1e19}) {
    EXPECT_THAT(error([&](auto& m) { m.mutable_layers(0)->set_prefill_flops(bad); }),
                HasSubstr("layers[0].prefill_flops is "));
    EXPECT_THAT(error([&](auto& m) { m.mutable_layers(0)->set_decode_bytes(bad); }),
                HasSubstr("layers[0].decode_bytes is "));
  }
  EXPECT_THAT(error([](auto& m) {
                for (int i = 0; i < 3; ++i) {
                  m.mutable_layers(i)->set_cache_bytes_per_token(uint64_t{1} << 25);
                  m.mutable_memory()->mutable_layers(i)->set_cache_bytes_per_token(uint64_t{1} << 25);
                }
              }),
              HasSubstr("the cache of one token over all layers is 100663296"));
  EXPECT_EQ(error([](auto& m) { m.mutable_memory()->mutable_layers()->RemoveLast(); }),
            "the number of memory.layers is 2, expected 3");
  EXPECT_EQ(error([](auto& m) { m.mutable_memory()->mutable_layers(1)->set_cache_bytes_per_token(7); }),
            "memory.layers[1].cache_bytes_per_token is 7, expected 0");
  EXPECT_THAT(error([](auto& m) { m.mutable_memory()->set_back_end_bytes_per_row(~uint64_t{0}); }),
              HasSubstr("memory.back_end_bytes_per_row is 18446744073709551615"));
  EXPECT_THAT(error([](auto& m) { m.mutable_memory()->set_snapshot_copies(17); }),
              HasSubstr("memory.snapshot_copies is 17"));
}

TEST(WorkerMessagesTest, Groups) {
  const auto error = [](const std::function<void(cluster::v1::Joined&)>& edit) {
    return ErrorOf(Joined(), [&](FromWorker& message) { edit(*message.mutable_joined()); });
  };
  EXPECT_EQ(error([](auto& m) {
              for (int i = 0; i < 100000; ++i) m.add_addresses();
            }),
            "the number of addresses is 100001, expected 0 to 1024");
  EXPECT_EQ(error([](auto& m) { m.add_addresses(std::string(1025, 'a')); }),
            "an address has 1025 bytes, the limit is 1024");
  EXPECT_EQ(error([](auto& m) { m.add_memory()->set_name(std::string(65, 'p')); }),
            "memory.name has 65 bytes, the limit is 64");
  EXPECT_EQ(error([](auto& m) {
              for (int i = 0; i < 64; ++i) m.add_memory();
            }),
            "the number of memory parts is 65, expected 0 to 64");
  EXPECT_THAT(error([](auto& m) { m.set_reserved_bytes(~uint64_t{0}); }), HasSubstr("reserved_bytes is "));
  FromWorker end;
  end.mutable_end_generation()->set_reason(std::string(5000, 'r'));
  EXPECT_EQ(ErrorOf(CheckWorkerMessage(end)), "reason has 5000 bytes, the limit is 4096");
}

TEST(WorkerMessagesTest, AnswersToSteps) {
  for (const double bad : {-1.0, -1e-9, kNaN, kInfinity, 1e10}) {
    EXPECT_THAT(ErrorOf([&](auto& m) { m.set_busy_seconds(bad); }), HasSubstr("busy_seconds is "));
    EXPECT_THAT(ErrorOf([&](auto& m) { m.set_bubble_seconds(bad); }), HasSubstr("bubble_seconds is "));
    EXPECT_THAT(ErrorOf([&](auto& m) { m.set_idle_seconds(bad); }), HasSubstr("idle_seconds is "));
  }
  EXPECT_THAT(ErrorOf([](auto& m) { m.set_hidden_bytes(uint64_t{1} << 63); }),
              HasSubstr("hidden_bytes is 9223372036854775808, expected 0 to"));
  EXPECT_THAT(ErrorOf([](auto& m) { m.set_cache_tokens(~uint64_t{0}); }), HasSubstr("cache_tokens is "));
  EXPECT_THAT(ErrorOf([](auto& m) { m.set_gold_tier_drops(~uint64_t{0}); }), HasSubstr("gold_tier_drops is "));
  EXPECT_EQ(ErrorOf([](auto& m) { m.set_gold_compressed_sequences(1'048'577); }),
            "gold_compressed_sequences is 1048577, expected 0 to 1048576");
  EXPECT_EQ(ErrorOf([](auto& m) { m.set_gold_shared_sequences(~uint32_t{0}); }),
            "gold_shared_sequences is 4294967295, expected 0 to 1048576");
  EXPECT_THAT(ErrorOf([](auto& m) { m.set_gold_full_sequences(1 << 21); }), HasSubstr("gold_full_sequences is "));
  EXPECT_EQ(ErrorOf([](auto& m) { m.mutable_results(0)->set_error(std::string(1 << 20, 'e')); }),
            "results.error has 1048576 bytes, the limit is 4096");
  EXPECT_EQ(ErrorOf([](auto& m) { m.mutable_results(0)->set_token(10); }), "results.token is 10, expected 0 to 9");
  EXPECT_EQ(ErrorOf([](auto& m) { m.mutable_results(0)->set_logprobs(0, std::nanf("")); }),
            "results.logprobs has a NaN");
  EXPECT_EQ(ErrorOf([](auto& m) { m.mutable_results(0)->mutable_top(0)->set_ids(0, ~0U); }),
            "results.top.ids is 4294967295, expected 0 to 9");
  EXPECT_EQ(ErrorOf([](auto& m) { m.mutable_results(0)->mutable_top(0)->add_ids(1); }),
            "results.top.the number of logprobs is 1, expected 2");
  EXPECT_THAT(ErrorOf([](auto& m) { m.mutable_results(0)->set_logits("abc"); }),
              HasSubstr("results.logits has 3 bytes"));
}

absl::Status CheckBytes(const std::string& bytes) {
  google::protobuf::io::ArrayInputStream input(bytes.data(), static_cast<int>(bytes.size()));
  return CheckWorkerBytes(&input);
}

// 2 bytes of an empty entry take 40 times as much when they are parsed.
TEST(WorkerMessagesTest, EntriesAreCountedBeforeTheyAreParsed) {
  cluster::v1::FromWorker done;
  *done.mutable_step_done() = Done();
  for (const FromWorker& message : {Register(), Described(), Joined(), done, FromWorker()}) {
    EXPECT_EQ(CheckBytes(message.SerializeAsString()), absl::OkStatus()) << message.ShortDebugString();
  }
  FromWorker addresses = Joined();
  while (addresses.joined().addresses_size() <= kWorkerEntriesMax) addresses.mutable_joined()->add_addresses();
  EXPECT_EQ(ErrorOf(CheckBytes(addresses.SerializeAsString())), "it has more than 262144 entries");
  FromWorker tops;
  for (int i = 0; i < 2; ++i) {
    auto& result = *tops.mutable_step_done()->add_results();
    for (int64_t k = 0; k < kWorkerEntriesMax / 2; ++k) result.add_top();
  }
  EXPECT_EQ(ErrorOf(CheckBytes(tops.SerializeAsString())), "it has more than 262144 entries") << "at all depths";
  std::string unknown;
  for (int64_t i = 0; i <= kWorkerEntriesMax; ++i) unknown += std::string("\x78\x01", 2);
  EXPECT_EQ(ErrorOf(CheckBytes(unknown)), "it has more than 262144 entries");
  for (const std::string bad : {"\x0a",
                                "\x0a\x05"
                                "abc",
                                "\x0b", "\xff\xff\xff\xff\xff\xff"}) {
    EXPECT_EQ(ErrorOf(CheckBytes(bad)), "the bytes are not a valid message");
  }
}

TEST(WorkerMessagesTest, WhatWorkersSayOfTheirShelvesIsChecked) {
  FromWorker registration = Register();
  registration.mutable_register_()->set_shelf_bytes(uint64_t{1} << 50);
  EXPECT_TRUE(CheckWorkerMessage(registration).ok());
  registration.mutable_register_()->set_shelf_bytes((uint64_t{1} << 50) + 1);
  EXPECT_THAT(CheckWorkerMessage(registration).ToString(), HasSubstr("shelf_bytes is 1125899906842625"));
  cluster::v1::StepDone done = Done();
  done.add_unsaved(~uint64_t{0});
  done.set_shelf_bytes(5);
  EXPECT_TRUE(CheckStepDone(done, kVocabSize).ok());
  done.set_shelf_bytes(~uint64_t{0});
  EXPECT_THAT(CheckStepDone(done, kVocabSize).ToString(), HasSubstr("shelf_bytes"));
  done.set_shelf_bytes(0);
  for (int i = 0; i < 1 << 20; ++i) done.add_unsaved(i);
  EXPECT_THAT(CheckStepDone(done, kVocabSize).ToString(), HasSubstr("the number of unsaved is 1048577"));
}

TEST(WorkerMessagesTest, PartsOfStagesAreChecked) {
  const auto error = [](const std::function<void(cluster::v1::PartDescription&)>& spoil) {
    FromWorker message = Joined();
    message.mutable_joined()->set_numerics("cpu-f32");
    cluster::v1::PartDescription& part = *message.mutable_joined()->add_parts();
    part.mutable_part()->set_layer(1023);
    part.mutable_part()->set_kind("wkv");
    part.set_dtype("f32");
    for (const uint64_t number : {1 << 6, 1 << 10, 1 << 10}) part.add_shape(number);
    spoil(part);
    return std::string(CheckWorkerMessage(message).message());
  };
  EXPECT_EQ(error([](auto&) {}), "");
  EXPECT_EQ(error([](auto& p) { p.clear_shape(); }), "");
  EXPECT_EQ(error([](auto& p) { p.mutable_part()->set_layer(1024); }), "parts.layer is 1024, expected 0 to 1023");
  EXPECT_THAT(error([](auto& p) { p.mutable_part()->set_kind("shift"); }), HasSubstr("parts.kind is \"shift\""));
  EXPECT_THAT(error([](auto& p) { p.mutable_part()->set_kind(std::string(65, 'k')); }), HasSubstr("has 65 bytes"));
  EXPECT_THAT(error([](auto& p) { p.set_dtype("f64"); }), HasSubstr("parts.dtype is \"f64\", expected one of"));
  EXPECT_EQ(error([](auto& p) { p.add_shape(1); }), "parts.the number of shape is 4, expected 0 to 3");
  EXPECT_EQ(error([](auto& p) { p.set_shape(0, 0); }), "parts.shape is 0, expected 1 to 16777216");
  EXPECT_THAT(error([](auto& p) { p.set_shape(0, 65); }), HasSubstr("the size of shape is 272629760"));
  FromWorker message = Joined();
  message.mutable_joined()->set_numerics(std::string(65, 'n'));
  EXPECT_EQ(CheckWorkerMessage(message).message(), "numerics has 65 bytes, the limit is 64");
  message = Joined();
  for (int i = 0; i < 4097; ++i) message.mutable_joined()->add_parts();
  EXPECT_EQ(CheckWorkerMessage(message).message(), "the number of parts is 4097, expected 0 to 4096");
}

TEST(WorkerMessagesTest, MessagesOfContextsStreams) {
  using cluster::v1::FromShelf;
  struct Case {
    std::string named;  // empty: it is good
    std::function<void(FromShelf&)> make;
  };
  const auto piece = [](auto spoil) {
    return [spoil](FromShelf& message) {
      cluster::v1::Piece& good = *message.mutable_piece();
      good.mutable_part()->set_layer(1023);
      good.mutable_part()->set_kind("wkv");
      good.set_dtype("f32");
      for (const uint64_t number : {32, 64, 1 << 24}) good.add_shape(number);
      good.set_begin(5);
      good.set_end(uint64_t{1} << 36);
      good.set_gold_position(uint64_t{1} << 36);
      good.set_data(std::string(1 << 20, 'x'));
      spoil(good);
    };
  };
  const std::vector<Case> cases = {
      {"", piece([](auto&) {})},
      {"an empty or unknown message", [](auto&) {}},
      {"", [](auto& m) { m.set_token("t"); }},
      {"the size of token is 0", [](auto& m) { m.set_token(""); }},
      {"the size of token is 65", [](auto& m) { m.set_token(std::string(65, 't')); }},
      {"piece.part.layer is 1024", piece([](auto& p) { p.mutable_part()->set_layer(1024); })},
      {"piece.part.kind has 65 bytes", piece([](auto& p) { p.mutable_part()->set_kind(std::string(65, 'k')); })},
      {"piece.dtype has 65 bytes", piece([](auto& p) { p.set_dtype(std::string(65, 'k')); })},
      {"piece.data has 1048577 bytes, the limit is 1048576", piece([](auto& p) { p.mutable_data()->push_back('x'); })},
      {"the number of shape is 4", piece([](auto& p) { p.add_shape(1); })},
      {"piece.shape is 16777217", piece([](auto& p) { p.set_shape(2, (1 << 24) + 1); })},
      {"piece.end is 68719476737", piece([](auto& p) { p.set_end((uint64_t{1} << 36) + 1); })},
      {"piece.begin is 5, expected 0 to 4", piece([](auto& p) {
         p.set_end(4);
         p.set_gold_position(4);
       })},
      {"piece.gold_position is 9", piece([](auto& p) {
         p.set_end(8);
         p.set_gold_position(9);
       })},
      {"piece.offset is 18446744073709551615", piece([](auto& p) { p.set_offset(~uint64_t{0}); })},
      {"", [](auto& m) { m.mutable_put_done()->set_error(std::string(4096, 'e')); }},
      {"put_done.error has 4097", [](auto& m) { m.mutable_put_done()->set_error(std::string(4097, 'e')); }},
      {"put_done.part.layer", [](auto& m) { m.mutable_put_done()->mutable_part()->set_layer(1 << 20); }},
      {"", [](auto& m) { m.mutable_fetch_done()->set_parts(1 << 16); }},
      {"fetch_done.parts is 65537", [](auto& m) { m.mutable_fetch_done()->set_parts((1 << 16) + 1); }},
      {"fetch_done.error has 4097", [](auto& m) { m.mutable_fetch_done()->set_error(std::string(4097, 'e')); }},
  };
  for (const Case& test_case : cases) {
    FromShelf message;
    test_case.make(message);
    const absl::Status status = CheckShelfMessage(message);
    EXPECT_EQ(status.ok(), test_case.named.empty()) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(test_case.named));
    const std::string bytes = message.SerializeAsString();
    google::protobuf::io::ArrayInputStream input(bytes.data(), static_cast<int>(bytes.size()));
    EXPECT_TRUE(CheckShelfBytes(&input).ok());
  }
  std::string many;  // unknown fields
  for (int64_t i = 0; i <= kWorkerEntriesMax; ++i) many += std::string("\x78\x01", 2);
  google::protobuf::io::ArrayInputStream input(many.data(), static_cast<int>(many.size()));
  EXPECT_THAT(CheckShelfBytes(&input).ToString(), HasSubstr("more than 262144 entries"));
}

}  // namespace
}  // namespace goldfinch
