// goldfinch context, against a fake server; context_files_test.cc has the commands with files.
#include <string>

#include "absl/status/status.h"
#include "clients/cli/context/context_table.h"
#include "clients/cli/context/context_test_util.h"
#include "clients/cli/terminal/terminal.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "protos/contexts.pb.h"

namespace goldfinch {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

using ContextTest = ContextCommandsTest;

TEST_F(ContextTest, CreateSendsWhatTheFlagsSay) {
  ContextOptions options = Options("create");
  options.keep = {.name = "book", .expire_after_seconds = 90.5, .replace = "v6"};
  options.text_file = Write("book.txt", "Once");
  options.from = "shelf@12";
  options.breakpoints = {1, 3};
  options.priority = -5;
  const CommandOutput output = Run(options);
  ASSERT_TRUE(output.status.ok()) << output.status;
  const v1::CreateContextRequest& seen = contexts_.create;
  EXPECT_EQ(seen.text(), "Once");
  EXPECT_EQ(seen.keep_as().name(), "book");
  EXPECT_EQ(seen.keep_as().expire_after_seconds(), 90.5);
  EXPECT_EQ(seen.keep_as().etag(), "v6");
  EXPECT_EQ(seen.context(), "shelf");
  EXPECT_EQ(seen.context_tokens(), 12u);
  EXPECT_THAT(seen.breakpoints(), ElementsAre(1, 3));
  EXPECT_EQ(seen.priority(), -5);
  EXPECT_THAT(output.out, HasSubstr("name       book\n"));
  EXPECT_THAT(output.out, HasSubstr("tokens     20,000\n"));
  EXPECT_THAT(output.out, HasSubstr("etag       v7\n"));
  EXPECT_EQ(output.err, "read 17,000 tokens in 2.00 s, 8500 tokens/s; 3,000 more were kept already\n");
  options = Options("create");
  options.keep.name = "book";
  options.text = "Twice";
  options.has_text = true;
  options.json = true;
  const CommandOutput json_output = Run(options);
  ASSERT_TRUE(json_output.status.ok()) << json_output.status;
  EXPECT_EQ(contexts_.create.text(), "Twice");
  EXPECT_FALSE(contexts_.create.has_context_tokens());
  EXPECT_FALSE(contexts_.create.keep_as().has_expire_after_seconds());
  const nlohmann::json json = nlohmann::json::parse(json_output.out);
  EXPECT_EQ(json["request_id"], "r1");
  EXPECT_EQ(json["context"]["tokens"], 20'000);
  EXPECT_TRUE(json["context"]["expires_unix_seconds"].is_null());
  EXPECT_EQ(json["usage"]["cached_tokens"], 3'000);
  EXPECT_EQ(json_output.err, "");
}

TEST_F(ContextTest, CreateRefusesWhatCannotBe) {
  ContextOptions options = Options("create");
  options.keep.name = "book";
  options.has_text = true;
  EXPECT_EQ(ExitCode(Run(options).status), 2) << "the text is empty";
  options.text = "Once";
  options.from = "@3";
  EXPECT_THAT(std::string(Run(options).status.message()), HasSubstr("--from is \"@3\""));
  options.from = "";
  contexts_.with_context = false;
  EXPECT_TRUE(absl::IsInternal(Run(options).status));
}

TEST_F(ContextTest, AppendNamesTheEtag) {
  ContextOptions options = Options("append");
  options.name = "book";
  options.etag = "v6";
  options.text = "more";
  options.has_text = true;
  ASSERT_TRUE(Run(options).status.ok());
  EXPECT_EQ(contexts_.append.name(), "book");
  EXPECT_EQ(contexts_.append.etag(), "v6");
  EXPECT_EQ(contexts_.append.text(), "more");
  contexts_.status = grpc::Status(grpc::StatusCode::ABORTED, "etag is v6, the context has v7");
  const CommandOutput output = Run(options);
  EXPECT_EQ(output.status.message(), remote_.server + ": ABORTED: etag is v6, the context has v7");
  EXPECT_EQ(ExitCode(output.status), 1);
  EXPECT_EQ(output.out, "");
}

TEST_F(ContextTest, ListAsksForAllPages) {
  v1::ListContextsResponse& first = contexts_.pages[""];
  *first.add_contexts() = contexts_.context;
  first.set_next_page_token("p2");
  v1::Context& other = *contexts_.pages["p2"].add_contexts();
  other.set_name("letter");
  other.set_pinned(true);
  other.set_place(v1::MEMORY_AND_DISK);
  const CommandOutput output = Run(Options("list"));
  ASSERT_TRUE(output.status.ok()) << output.status;
  ASSERT_EQ(contexts_.lists.size(), 2u);
  EXPECT_EQ(contexts_.lists[1].page_token(), "p2");
  EXPECT_THAT(output.out, HasSubstr("name    tokens  size     shared  kept in       used"));
  EXPECT_THAT(output.out, HasSubstr("book    20,000  14.2 MB  0 B     memory "));
  EXPECT_THAT(output.out, HasSubstr("letter  0       0 B      0 B     memory, disk"));
  ContextOptions options = Options("list");
  options.json = true;
  const nlohmann::json json = nlohmann::json::parse(Run(options).out);
  ASSERT_EQ(json["contexts"].size(), 2u);
  EXPECT_EQ(json["contexts"][1]["name"], "letter");
  EXPECT_EQ(json["contexts"][1]["place"], "MEMORY_AND_DISK");
  contexts_.pages["p2"].set_next_page_token("p2");
  EXPECT_TRUE(absl::IsInternal(Run(Options("list")).status)) << "the same page again and again";
}

TEST_F(ContextTest, CommandsOnOneContext) {
  ContextOptions options = Options("show");
  options.name = "book";
  CommandOutput output = Run(options);
  ASSERT_TRUE(output.status.ok()) << output.status;
  EXPECT_EQ(contexts_.get.name(), "book");
  EXPECT_THAT(output.out, HasSubstr("kept in    memory\n"));

  options = Options("fork");
  options.name = "book@100";
  options.keep = {.name = "chapter", .expire_after_seconds = 5, .replace = ""};
  ASSERT_TRUE(Run(options).status.ok());
  EXPECT_EQ(contexts_.fork.context(), "book");
  EXPECT_EQ(contexts_.fork.context_tokens(), 100u);
  EXPECT_EQ(contexts_.fork.keep_as().name(), "chapter");
  EXPECT_EQ(contexts_.fork.keep_as().expire_after_seconds(), 5);
  options.name = "book";
  ASSERT_TRUE(Run(options).status.ok());
  EXPECT_FALSE(contexts_.fork.has_context_tokens());

  options = Options("rename");
  options.name = "book";
  options.new_name = "tome";
  options.etag = "v7";
  options.json = true;
  output = Run(options);
  EXPECT_EQ(nlohmann::json::parse(output.out)["etag"], "v7");
  EXPECT_EQ(contexts_.rename.name(), "book");
  EXPECT_EQ(contexts_.rename.new_name(), "tome");
  EXPECT_EQ(contexts_.rename.etag(), "v7");

  for (const bool pinned : {true, false}) {
    options = Options(pinned ? "pin" : "unpin");
    options.name = "book";
    options.etag = "v7";
    ASSERT_TRUE(Run(options).status.ok());
    EXPECT_EQ(contexts_.pin.pinned(), pinned);
    EXPECT_EQ(contexts_.pin.etag(), "v7");
  }

  options = Options("delete");
  options.name = "book";
  output = Run(options);
  ASSERT_TRUE(output.status.ok()) << output.status;
  EXPECT_EQ(contexts_.remove.name(), "book");
  EXPECT_EQ(output.out, "");
  contexts_.status = grpc::Status(grpc::StatusCode::NOT_FOUND, "there is no context \"book\"");
  EXPECT_EQ(Run(options).status.message(), remote_.server + ": NOT_FOUND: there is no context \"book\"");
}

TEST_F(ContextTest, ErrorsInFieldsNameTheFlag) {
  ContextOptions options = Options("create");
  options.keep.name = "book";
  options.text = "Once";
  options.has_text = true;
  for (const auto& [message, says] : {std::pair("breakpoints[0] is 9", "--breakpoint[0] is 9"),
                                      std::pair("keep_as.expire_after_seconds is -1", "--expire-after is -1"),
                                      std::pair("keep_as.etag has 65 bytes", "--replace has 65 bytes")}) {
    contexts_.status = grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, message);
    const CommandOutput output = Run(options);
    EXPECT_EQ(output.status.message(), says);
    EXPECT_EQ(ExitCode(output.status), 2);
  }
}

TEST_F(ContextTest, ContextsCannotSteerTheTerminal) {
  const std::string hostile = "\x1b[2J\u202e\n";
  contexts_.context.set_name(hostile);
  contexts_.context.set_etag(hostile);
  *contexts_.pages[""].add_contexts() = contexts_.context;
  for (const char* command : {"show", "list"}) {
    for (const bool json : {false, true}) {
      ContextOptions options = Options(command);
      options.name = "book";
      options.json = json;
      const CommandOutput output = Run(options);
      ASSERT_TRUE(output.status.ok()) << output.status;
      EXPECT_THAT(output.out, Not(HasSubstr("\x1b")));
      EXPECT_THAT(output.out, Not(HasSubstr("\u202e")));
    }
  }
}

TEST(ContextTableTest, DetailsSayWhatIsKept) {
  v1::Context context;
  context.set_name("book");
  context.set_tokens(20'000);
  context.set_bytes(14'200'000);
  context.set_shared_bytes(5'000'000);
  context.set_transformer_bytes(3'000'000'000);
  context.set_place(v1::NOWHERE);
  context.set_created_unix_seconds(1000);
  context.set_last_use_unix_seconds(8200);
  context.set_expires_unix_seconds(8200 + 3600);
  for (int i = 1; i <= 40; ++i) context.add_snapshots(500 * i);
  const std::string text = ContextDetails(context, 8230);
  EXPECT_THAT(text,
              HasSubstr("size       14.2 MB, 5 MB of them shared with other contexts; a transformer of this shape "
                        "would keep 3 GB\n"));
  EXPECT_THAT(text, HasSubstr("kept in    nowhere: the next request over it reads its tokens again\n"));
  EXPECT_THAT(text, HasSubstr("snapshots  500; 1,000; 1,500;"));
  EXPECT_THAT(text, HasSubstr("; and 8 more\n"));
  EXPECT_THAT(text, HasSubstr("created    2 h 0 min ago\n"));
  EXPECT_THAT(text, HasSubstr("used       30 s ago\n"));
  EXPECT_THAT(text, HasSubstr("expires    in 59 min 30 s\n"));
  context.set_pinned(true);
  EXPECT_THAT(ContextDetails(context, 8230), HasSubstr("expires    not while pinned\n"));
  context.clear_expires_unix_seconds();
  EXPECT_THAT(ContextDetails(context, 8230), HasSubstr("expires    never\n"));
  context.set_created_unix_seconds(1e300);  // a clock that is ahead
  EXPECT_THAT(ContextDetails(context, 8230), HasSubstr("created    0 s ago\n"));
}

}  // namespace
}  // namespace goldfinch
