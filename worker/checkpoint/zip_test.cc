#include "worker/checkpoint/zip.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "worker/checkpoint/checkpoint_test_util.h"

namespace goldfinch {
namespace {

using ::testing::HasSubstr;

std::string MessageOf(const std::string& archive) { return ReadZipDirectory(archive).status().ToString(); }

// The archive of "a" and `file`.
std::string MessageWith(const ZipFile& file) { return MessageOf(ZipBytes({{.name = "a", .bytes = "golden"}, file})); }

TEST(ZipTest, ReadsPlainArchives) {
  for (bool zip64 : {false, true}) {
    for (int alignment : {1, 64}) {
      const std::string archive = ZipBytes(
          {{.name = "m/a", .bytes = "gold"}, {.name = "m/"}, {.name = "b", .bytes = "finch"}}, alignment, zip64);
      const auto entries = ReadZipDirectory(archive);
      ASSERT_TRUE(entries.ok()) << entries.status();
      ASSERT_EQ(entries->size(), 3u);
      EXPECT_EQ((*entries)[0].name, "m/a");
      EXPECT_EQ((*entries)[0].bytes, "gold");
      EXPECT_EQ((*entries)[0].crc32, 0x47a91d51u);
      EXPECT_EQ((*entries)[1].bytes, "");
      EXPECT_EQ((*entries)[2].bytes, "finch");
      EXPECT_EQ(((*entries)[2].bytes.data() - archive.data()) % alignment, 0);
    }
  }
}

TEST(ZipTest, CommentsAreAllowed) {
  std::string archive = ZipBytes({{.name = "a", .bytes = "gold"}});
  archive[archive.size() - 2] = 3;
  EXPECT_EQ(MessageOf(archive + "PK!"), "OK");
  EXPECT_THAT(MessageOf(archive + "PK"), HasSubstr("there is no zip directory (cut short?)"));
}

TEST(ZipTest, Entries) {
  EXPECT_EQ(MessageWith({.name = "b", .bytes = "finch"}), "OK");
  EXPECT_THAT(MessageWith({.name = "b", .bytes = "finch", .method = 8}),
              HasSubstr("INVALID_ARGUMENT: archive file 'b' is compressed (method 8)"));
  EXPECT_THAT(MessageWith({.name = "a", .bytes = "finch"}), HasSubstr("archive file 'a' appears twice"));
  EXPECT_THAT(MessageWith({.name = "b", .bytes = "finch", .size_delta = 1}),
              HasSubstr("archive file 'b' has 6 bytes from byte 128 on, but the archive's files end at byte 133"));
  EXPECT_THAT(MessageWith({.name = "b", .bytes = "finch", .local_offset = 3}),
              HasSubstr("archive file 'b' has no local header at byte 3"));
  EXPECT_THAT(MessageWith({.name = "b", .bytes = "finch", .local_offset = 0xfffffff0}),
              HasSubstr("archive file 'b' has no local header at byte 4294967280"));
  EXPECT_THAT(MessageWith({.name = "b", .bytes = "finch", .local_offset = 0}),
              HasSubstr("archive file 'b' has a local header that contradicts the zip directory"));
}

TEST(ZipTest, EncryptedEntries) {
  std::string archive = ZipBytes({{.name = "a", .bytes = "gold"}});
  const size_t header = archive.find("PK\1\2");
  archive[header + 8] = 1;
  EXPECT_THAT(MessageOf(archive), HasSubstr("archive file 'a' is encrypted"));
}

TEST(ZipTest, OverlapsAreRefused) {
  // The second file's local header lies inside of the first file's bytes.
  const std::string inner = ZipBytes({{.name = "b", .bytes = "finch"}});
  EXPECT_THAT(MessageOf(ZipBytes({{.name = "a", .bytes = inner}, {.name = "b", .bytes = "finch", .local_offset = 64}})),
              HasSubstr("archive files 'a' and 'b' overlap"));
}

TEST(ZipTest, Zip64NumbersThatOverflow) {
  const std::string good = ZipBytes({{.name = "a", .bytes = "gold"}}, 64, /*zip64=*/true);
  const size_t record = good.rfind(std::string("\1\0\x18\0", 4));  // of the directory: size, stored size, offset
  ASSERT_NE(record, std::string::npos);
  const auto with = [&](size_t at, const std::string& bytes) {
    std::string archive = good;
    archive.replace(at, bytes.size(), bytes);
    return MessageOf(archive);
  };
  EXPECT_THAT(with(record + 4, std::string(16, '\xff')),
              HasSubstr("'a' has 18446744073709551615 bytes from byte 64 on"));
  EXPECT_THAT(with(record + 4, std::string(8, '\xff')), HasSubstr("'a' is stored plainly, but with two sizes"));
  EXPECT_THAT(with(record + 20, std::string(8, '\xff')),
              HasSubstr("'a' has no local header at byte 18446744073709551615"));
  EXPECT_THAT(with(record, "\2"), HasSubstr("'a' has no zip64 record"));
  EXPECT_THAT(with(record + 2, "\x08"), HasSubstr("'a' has no zip64 record"));
  const size_t end = good.find("PK\6\6");
  for (size_t field : {32, 40, 48}) {
    EXPECT_THAT(with(end + field, std::string(8, '\xff')), HasSubstr("zip directory is damaged")) << field;
  }
  const size_t locator = good.find("PK\6\7");
  EXPECT_THAT(with(locator + 8, std::string(8, '\xff')), HasSubstr("zip directory is damaged"));
}

TEST(ZipTest, EveryTruncationIsAnError) {
  for (bool zip64 : {false, true}) {
    const std::string archive = ZipBytes({{.name = "a", .bytes = "gold"}, {.name = "b", .bytes = "finch"}}, 8, zip64);
    for (size_t size = 0; size < archive.size(); ++size) EXPECT_NE(MessageOf(archive.substr(0, size)), "OK") << size;
    EXPECT_THAT(MessageOf(archive.substr(0, 50)), HasSubstr("after 50 bytes there is no zip directory (cut short?)"));
  }
}

}  // namespace
}  // namespace goldfinch
