#include "worker/checkpoint/pickle.h"

#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/checkpoint/checkpoint_test_util.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;

const TestView kView = {"emb.weight", DType::kBf16, "7", 24, 4, {2, 3}, {3, 1}};

std::string ErrorOf(const std::string& pickle) {
  const auto tensors = ReadStateDict(pickle);
  if (tensors.ok()) return "no error";
  return tensors.status().ToString();
}

std::string ErrorOf(const PickleWriter& pickle) { return ErrorOf(pickle.Finish()); }

TEST(PickleTest, ReadsTensors) {
  const std::string pickle = StateDictPickle({kView, {"head.weight", DType::kF32, "8", 5000000000, 0, {}, {}}});
  const auto tensors = ReadStateDict(pickle);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 2u);
  const PickledTensor& first = (*tensors)[0];
  EXPECT_EQ(first.name, "emb.weight");
  EXPECT_EQ(first.storage, "7");
  EXPECT_EQ(first.dtype, DType::kBf16);
  EXPECT_EQ(first.storage_elements, 24);
  EXPECT_EQ(first.view.offset_elements, 4);
  EXPECT_EQ(first.view.rank, 2);
  EXPECT_EQ(first.view.sizes[1], 3);
  EXPECT_EQ(first.view.strides[0], 3);
  const PickledTensor& second = (*tensors)[1];
  EXPECT_EQ(second.storage_elements, 5000000000) << "LONG1";
  EXPECT_EQ(second.view.rank, 0);
}

// What torch.save writes for module.state_dict(): an OrderedDict with its metadata as attributes, values recalled from
// the memo, and whatever else people put in.
TEST(PickleTest, PassesOverEverythingElse) {
  PickleWriter pickle;
  pickle.Global("collections", "OrderedDict").Op(")Rq").Op(std::string(1, '\0')).Op("(");
  pickle.Str("weight").Op("r\1\2\3\4").Tensor(kView).Op("q\1");
  pickle.Str("tied").Op("h\1");
  pickle.Str("parameter").Global("torch._utils", "_rebuild_parameter").Op("(h\1\x88)tR");
  pickle.Str("epoch").Int(-3);
  pickle.Str("rate").Op("G").Op(std::string(8, '\0'));
  pickle.Str("steps").Op("](").Int(1).Int(70000).Op("e").Int(3).Op("a");
  pickle.Str("note").Op("\x8c\2ok\x94");
  pickle.Str("flag").Op("\x89").Str("none").Op("N");
  pickle.Str("nested").Op("}").Str("a").Int(1).Op("s");
  pickle.Int(5).Int(6);
  pickle.Op("u");
  pickle.Op("}")
      .Str("_metadata")
      .Global("collections", "OrderedDict")
      .Op(")R")
      .Str("")
      .Op("}")
      .Str("version")
      .Int(1)
      .Op("sssb");
  const std::string bytes = pickle.Finish();
  const auto tensors = ReadStateDict(bytes);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  ASSERT_EQ(tensors->size(), 3u);
  EXPECT_EQ((*tensors)[1].name, "tied");
  EXPECT_EQ((*tensors)[1].storage, "7");
  EXPECT_EQ((*tensors)[2].name, "parameter");
}

TEST(PickleTest, Protocol4) {
  PickleWriter pickle;
  pickle.Op("\x80\4\x95").Op(std::string(8, '\0')).Op("}(\x8c\1w");
  pickle.Op("\x8c\x0ctorch._utils\x8c\x12_rebuild_tensor_v2\x93(");
  pickle.Op("(\x8c\7storage\x8c\5torch\x8c\x0c").Op("FloatStorage\x93\x8c\1").Op("0\x8c\3").Op("cpuK\4tQ");
  pickle.Int(0).Int(4).Op("\x85").Int(1).Op("\x85\x89").Op("}tRu");
  const std::string bytes = pickle.Finish();
  const auto tensors = ReadStateDict(bytes);
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  EXPECT_EQ((*tensors)[0].dtype, DType::kF32);
}

TEST(PickleTest, ImportsAreRefusedByName) {
  EXPECT_THAT(ErrorOf(PickleWriter().Global("os", "system").Str("true").Op("\x85R")),
              HasSubstr("imports 'os.system', which is not allowed (at byte 2)"));
  EXPECT_THAT(ErrorOf(PickleWriter().Str("builtins").Str("eval").Op("\x93")), HasSubstr("imports 'builtins.eval'"));
  EXPECT_THAT(ErrorOf(PickleWriter().Op("(").Str("true").Op("ios\nsystem\n")), HasSubstr("imports 'os.system'"));
  EXPECT_THAT(ErrorOf(PickleWriter().Global("torch", "LongStorage")), HasSubstr("imports 'torch.LongStorage'"));
  EXPECT_THAT(ErrorOf(PickleWriter().Global("torch._utils", "_rebuild_tensor_v2.__globals__")),
              HasSubstr("__globals__'"));
  EXPECT_THAT(ErrorOf(PickleWriter().Global("x\x1b[2J", "y")), HasSubstr("imports 'x\\x1b[2J.y'"));
  // The module may not bring the dot.
  EXPECT_THAT(ErrorOf(PickleWriter().Op("(icollections\nOrderedDict\n")), HasSubstr("INST"));
}

TEST(PickleTest, CallsAreRefused) {
  EXPECT_THAT(ErrorOf(PickleWriter().Global("torch", "FloatStorage").Op(")R")), HasSubstr("calls a storage type"));
  EXPECT_THAT(ErrorOf(PickleWriter().Str("system").Op(")R")), HasSubstr("calls a str with a tuple"));
  EXPECT_THAT(ErrorOf(PickleWriter().Global("collections", "OrderedDict").Op("K\1\x85R")),
              HasSubstr("from 1 arguments"));
  EXPECT_THAT(ErrorOf(PickleWriter().Global("torch._utils", "_rebuild_tensor_v2").Op(")R")),
              HasSubstr("arguments that are not those of a tensor"));
  EXPECT_THAT(ErrorOf(PickleWriter().Global("torch._utils", "_rebuild_parameter").Op("K\1\x85R")),
              HasSubstr("something else than a tensor"));
  EXPECT_THAT(ErrorOf(PickleWriter().Str("o").Op("}b")), HasSubstr("adds to a value of kind str as if it were a dict"));
  // NEWOBJ, EXT1, and whatever else.
  EXPECT_THAT(ErrorOf(PickleWriter().Op("\x81")), HasSubstr("uses opcode 0x81, which is not allowed"));
  EXPECT_THAT(ErrorOf(PickleWriter().Op("\x82\1")), HasSubstr("uses opcode 0x82"));
}

TEST(PickleTest, BrokenPrograms) {
  EXPECT_THAT(ErrorOf(""), HasSubstr("is cut short (at byte 0)"));
  EXPECT_THAT(ErrorOf("\x80\1."), HasSubstr("has protocol 1"));
  EXPECT_THAT(ErrorOf(PickleWriter()), HasSubstr("empty stack"));
  EXPECT_THAT(ErrorOf(PickleWriter().Op("}(")), HasSubstr("empty stack")) << "a mark hides what is below it";
  EXPECT_THAT(ErrorOf(PickleWriter().Op("t")), HasSubstr("ends a group that it never began"));
  EXPECT_THAT(ErrorOf(PickleWriter().Op("h\5")), HasSubstr("recalls value 5"));
  EXPECT_THAT(ErrorOf(PickleWriter().Op("}(K\1u")), HasSubstr("a key without a value"));
  EXPECT_THAT(ErrorOf(PickleWriter().Op("X\xff\xff\xff\xff")), HasSubstr("is cut short"));
  EXPECT_THAT(ErrorOf(PickleWriter().Op("\x8a\x09").Op(std::string(9, '\1'))),
              HasSubstr("an integer of 9 bytes; the limit is 8"));
  EXPECT_THAT(ErrorOf(PickleWriter().Int(1).Op("Q")), HasSubstr("refers to something that is not a storage"));
  EXPECT_THAT(ErrorOf(PickleWriter().Tuple({1, 2, 3, 4, 5}).Op("Q")), HasSubstr("not a storage"));
  EXPECT_THAT(ErrorOf(PickleWriter().Int(1).Int(2).Op("\x93")), HasSubstr("imports by no name"));
  EXPECT_THAT(ErrorOf(std::string(kPickleBytesMax + 1, 'N')), HasSubstr("4194305 bytes; the limit is 4194304"));
  const std::string good = StateDictPickle({kView});
  for (size_t size = 0; size < good.size(); ++size) EXPECT_NE(ErrorOf(good.substr(0, size)), "no error") << size;
}

TEST(PickleTest, WrongDicts) {
  EXPECT_THAT(ErrorOf(PickleWriter().Op("]")), HasSubstr("holds a list, not a dict of tensors"));
  EXPECT_THAT(ErrorOf(PickleWriter().Tensor(kView)), HasSubstr("holds a tensor, not a dict"));
  EXPECT_THAT(ErrorOf(PickleWriter().Op("}")), HasSubstr("holds no tensor; it holds nothing"));
  EXPECT_THAT(ErrorOf(PickleWriter().Op("}(").Str("state_dict").Op("}").Str("epoch").Int(2).Op("u")),
              HasSubstr("holds no tensor; it holds 'state_dict' (dict), 'epoch' (int)"));
  EXPECT_THAT(ErrorOf(PickleWriter().Op("}").Int(3).Tensor(kView).Op("s")),
              HasSubstr("name must be a non-empty string, got int"));
  EXPECT_THAT(ErrorOf(PickleWriter().Op("}").Str("").Tensor(kView).Op("s")),
              HasSubstr("name must be a non-empty string"));
  EXPECT_THAT(ErrorOf(StateDictPickle({kView, kView})), HasSubstr("tensor 'emb.weight' appears twice"));
  EXPECT_THAT(ErrorOf(StateDictPickle({{"deep", DType::kF32, "0", 1, 0, {1, 1, 1, 1, 1}, {1, 1, 1, 1, 1}}})),
              HasSubstr("tensor 'deep' has 5 dimensions; the limit is 4"));
}

// Programs that make a naive machine use time or memory out of proportion.
TEST(PickleTest, BombsStaySmall) {
  const std::string marks(1'000'000, '(');
  EXPECT_THAT(ErrorOf(PickleWriter().Op(marks)), HasSubstr("empty stack"));
  std::string nested = "(";
  for (int i = 0; i < 300'000; ++i) nested += "K\1\x85\x85";
  EXPECT_THAT(ErrorOf(PickleWriter().Op(nested + "t")), HasSubstr("holds a tuple"));
  // One long tuple as the sizes of many tensors.
  PickleWriter pickle;
  pickle.Op("(").Op(std::string(100'000, 'N')).Op("tq\1");
  pickle.Op("(").Str("storage").Global("torch", "FloatStorage").Str("0").Str("cpu").Int(1).Op("tQq\2");
  pickle.Global("torch._utils", "_rebuild_tensor_v2").Op("q\3");
  for (int i = 0; i < 1000; ++i) pickle.Op("h\3(h\2K").Op(std::string(1, '\0')).Op("h\1h\1\x89}tR");
  EXPECT_THAT(ErrorOf(pickle), HasSubstr("a size that is no integer"));
}

}  // namespace
}  // namespace goldfinch
