#include "clients/cli/machine/device_list.h"

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;

std::string ErrorOf(const std::string& text) { return std::string(ParseDeviceList(text).status().message()); }

TEST(DeviceListTest, NumbersAndRanges) {
  const auto gpus = [](std::vector<int> numbers) { return DeviceList{DeviceList::Kind::kGpus, numbers}; };
  EXPECT_EQ(ParseDeviceList("0-7").value(), gpus({0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(ParseDeviceList("4,0,2-3").value(), gpus({4, 0, 2, 3})) << "in this order";
  EXPECT_EQ(ParseDeviceList("5-5").value(), gpus({5}));
  EXPECT_EQ(ParseDeviceList("1023").value(), gpus({1023}));
  EXPECT_EQ(ParseDeviceList("all").value(), DeviceList{DeviceList::Kind::kAll});
  EXPECT_EQ(ParseDeviceList("cpu").value(), DeviceList{DeviceList::Kind::kCpu});
}

TEST(DeviceListTest, ErrorsSayWhatIsWrong) {
  for (const std::string text :
       {"", "gpu", "0,", ",0", "0--2", "-1", "+1", " 1", "1 ", "0-", "-", "cuda:0", "all,1", "0-1-2", "0x1", "1.5"}) {
    EXPECT_THAT(ErrorOf(text), HasSubstr("none of all, cpu, and GPU numbers and ranges such as 0,2,4-7")) << text;
  }
  EXPECT_THAT(ErrorOf("0,x-2"), HasSubstr("0,x-2 is none of"));
  EXPECT_THAT(ErrorOf("0,x-2"), HasSubstr("it has \"x-2\""));
  EXPECT_EQ(ErrorOf("0,7-3"), "0,7-3 has \"7-3\", which runs backwards");
  EXPECT_EQ(ErrorOf("0-4,3"), "0-4,3 names GPU 3 twice");
  EXPECT_EQ(ErrorOf("0-1024"), "0-1024 has \"0-1024\", the largest GPU number is 1023");
  EXPECT_EQ(ErrorOf("99999999999999999999"),
            "99999999999999999999 has \"99999999999999999999\", the largest GPU number is 1023");
}

TEST(DeviceListTest, TheMachineHasThem) {
  const DeviceList devices = ParseDeviceList("0,7").value();
  EXPECT_TRUE(CheckGpusExist(devices, 8).ok());
  EXPECT_EQ(CheckGpusExist(devices, 7).message(), "--devices names GPU 7, this machine has 7, GPU 0 to 6");
  EXPECT_EQ(CheckGpusExist(devices, 1).message(), "--devices names GPU 7, this machine has one, GPU 0");
  EXPECT_EQ(CheckGpusExist(devices, 0).message(), "--devices names GPU 0, this machine has no GPU that CUDA can use");
  EXPECT_TRUE(CheckGpusExist(ParseDeviceList("cpu").value(), 0).ok());
}

}  // namespace
}  // namespace goldfinch
