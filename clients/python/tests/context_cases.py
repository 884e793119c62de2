"""Named contexts, with both clients."""

import asyncio
import pathlib
import tempfile
import unittest

import goldfinch
from fake_server import SECONDS_MAX, FakeServer, echo


class ContextsCase(unittest.TestCase):
    def setUp(self):
        self.server = FakeServer()
        self.addCleanup(self.server.stop)
        self.server.generate = echo
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.path = self.folder / "book.safetensors"
        self.client = self.connect()
        self.contexts = self.client.contexts

    def connect(self, **options):
        client = goldfinch.Client(self.server.address, timeout=SECONDS_MAX, **options)
        self.addCleanup(client.close)
        return client

    def files(self):
        return sorted(path.name for path in self.folder.iterdir())


class NamesTest(ContextsCase):
    def test_create(self):
        seen = []
        keep = goldfinch.KeepAs("book", expire_after_seconds=60)
        book = self.contexts.create(keep, "Once upon", breakpoints=[4], priority=-1, progress=seen.append)
        self.assertEqual((book.name, book.tokens, book.place), ("book", 9, "memory"))
        self.assertEqual((book.expires_unix_seconds, book.created_unix_seconds), (70, 5))
        self.assertEqual(seen, [goldfinch.Progress(1, 9)])
        request = self.server.requests[-1]
        self.assertEqual((list(request.breakpoints), request.priority), ([4], -1))
        self.assertFalse(request.HasField("context_tokens"))
        more = self.contexts.create("more", [1, 2], context=book, context_tokens=4)
        self.assertEqual(self.server.contexts.texts["more"], b"Once\1\2")
        self.assertIsNone(more.expires_unix_seconds)
        with self.assertRaises(goldfinch.AlreadyExistsError):
            self.contexts.create("book", "x")
        self.assertEqual(self.contexts.create(goldfinch.KeepAs("book", etag=book.etag), "x").tokens, 1)

    def test_append(self):
        book = self.contexts.create("book", "Once")
        longer = self.contexts.append(book, " upon", etag=book.etag)
        self.assertEqual((longer.tokens, self.server.contexts.texts["book"]), (9, b"Once upon"))
        with self.assertRaises(goldfinch.AbortedError):
            self.contexts.append("book", "!", etag=book.etag)

    def test_list_asks_for_all_pages(self):
        for name in "abcde":
            self.contexts.create(name, name)
        names = [context.name for context in self.contexts.list(page_size=2)]
        self.assertEqual(names, list("abcde"))
        self.assertEqual([request.page_token for request in self.server.requests[-3:]], ["", "b", "d"])

    def test_changes(self):
        book = self.contexts.create("book", "Once upon")
        self.assertEqual(self.contexts.get("book"), book)
        fork = self.contexts.fork(book, "fork", context_tokens=4)
        self.assertEqual((fork.name, fork.tokens), ("fork", 4))
        self.assertTrue(self.contexts.pin("fork").pinned)
        self.assertFalse(self.contexts.pin("fork", False).pinned)
        self.assertEqual(self.contexts.rename("fork", "knife").name, "knife")
        with self.assertRaises(goldfinch.NotFoundError):
            self.contexts.get("fork")
        self.contexts.delete("knife")
        self.assertEqual([context.name for context in self.contexts.list()], ["book"])

    def test_requests_over_a_context(self):
        book = self.contexts.create("book", "Once")
        keep = goldfinch.KeepAs("answer", expire_after_seconds=5)
        self.client.generate("Why?", context=book, context_tokens=3, keep_as=keep, breakpoints=[2])
        request = self.server.requests[-1]
        self.assertEqual((request.context, request.context_tokens, list(request.breakpoints)), ("book", 3, [2]))
        self.assertEqual((request.keep_as.name, request.keep_as.expire_after_seconds), ("answer", 5))
        self.client.generate("Why?", context="book", keep_as="answer")
        request = self.server.requests[-1]
        self.assertEqual((request.context, request.keep_as.name), ("book", "answer"))
        self.assertFalse(request.HasField("context_tokens") or request.keep_as.HasField("expire_after_seconds"))
        self.client.generate("Why?")
        self.assertFalse(self.server.requests[-1].HasField("keep_as"))
        self.client.score("Why?", ["a"], context=book, context_tokens=2)
        request = self.server.requests[-1]
        self.assertEqual((request.context, request.context_tokens), ("book", 2))


class FilesTest(ContextsCase):
    def setUp(self):
        super().setUp()
        self.book = self.contexts.create("book", "Once")

    def check_exported(self):
        self.assertEqual(self.path.read_bytes(), self.server.contexts.file)
        self.assertEqual(self.files(), ["book.safetensors"])

    def test_export(self):
        seen = []
        self.contexts.export_to("book", self.path, progress=lambda *amounts: seen.append(amounts))
        self.check_exported()
        self.assertEqual((seen[0], seen[-1]), ((1000, 4352), (4352, 4352)))
        with self.assertRaises(FileExistsError):
            self.contexts.export_to("book", self.path)
        self.contexts.export_to("book", self.path, overwrite=True)
        self.check_exported()

    def test_export_goes_on_after_the_connection_broke(self):
        self.server.contexts.breaks = [1, 2]
        self.connect(retries=2).contexts.export_to("book", self.path)
        self.check_exported()
        self.assertEqual([request.offset for request in self.server.requests[-3:]], [0, 1000, 3000])

    def test_export_goes_on_in_a_later_call(self):
        self.server.contexts.breaks = [2]
        with self.assertRaises(goldfinch.UnavailableError):
            self.contexts.export_to("book", self.path)
        self.assertEqual(self.files(), ["book.safetensors.partial", "book.safetensors.partial.etag"])
        self.contexts.export_to("book", self.path)
        self.check_exported()
        request = self.server.requests[-1]
        self.assertEqual((request.offset, request.etag), (2000, self.book.etag))

    def test_export_begins_again_if_the_context_has_changed(self):
        self.server.contexts.breaks = [2]
        with self.assertRaises(goldfinch.UnavailableError):
            self.contexts.export_to("book", self.path)
        self.contexts.append("book", "!")
        self.contexts.export_to("book", self.path)
        self.check_exported()
        self.assertEqual(self.server.requests[-1].offset, 0)
        with self.assertRaises(goldfinch.AbortedError):
            self.contexts.export_to("book", self.path, etag=self.book.etag, overwrite=True)

    def test_export_checks_the_digest(self):
        self.server.contexts.sha256 = bytes(32)
        with self.assertRaisesRegex(goldfinch.GoldfinchError, "DATA_LOSS"):
            self.contexts.export_to("book", self.path)
        self.assertEqual(self.files(), [])

    def test_import(self):
        data = bytes(range(256)) * 4096 * 3 + b"end"
        self.path.write_bytes(data)
        seen = []
        keep = goldfinch.KeepAs("copy", expire_after_seconds=3)
        copy = self.contexts.import_from(self.path, keep, progress=lambda *amounts: seen.append(amounts))
        self.assertEqual((copy.name, copy.expires_unix_seconds), ("copy", 13))
        self.assertEqual(self.server.contexts.texts["copy"], data)
        self.assertEqual((seen[0], seen[1], seen[-1]), ((0, len(data)), (1 << 20, len(data)), (len(data), len(data))))

    def test_import_goes_on_after_the_connection_broke(self):
        self.path.write_bytes(bytes(3 << 20))
        self.server.contexts.breaks = [None, "before", "after"]
        self.connect(retries=2).contexts.import_from(self.path, "copy")
        self.assertEqual(self.server.contexts.texts["copy"], bytes(3 << 20))

    def test_import_goes_on_in_a_later_call(self):
        self.path.write_bytes(bytes(3 << 20))
        self.server.contexts.breaks = [None, None, "before"]
        with self.assertRaises(goldfinch.UnavailableError):
            self.contexts.import_from(self.path, "copy")
        before = len(self.server.requests)
        self.contexts.import_from(self.path, "copy")
        self.assertEqual(self.server.requests[before + 1].offset, 2 << 20)
        self.assertEqual(self.server.contexts.texts["copy"], bytes(3 << 20))


class AsyncContextsTest(ContextsCase):
    def test_all_methods(self):
        async def run():
            async with goldfinch.AsyncClient(self.server.address, timeout=SECONDS_MAX, retries=2) as client:
                contexts = client.contexts
                seen = []
                book = await contexts.create("book", "Once", progress=seen.append)
                self.assertEqual(seen, [goldfinch.Progress(1, 4)])
                book = await contexts.append(book, " upon", etag=book.etag)
                self.assertEqual(await contexts.get("book"), book)
                await contexts.fork("book", "fork", context_tokens=4)
                self.assertTrue((await contexts.pin("fork")).pinned)
                await contexts.rename("fork", "knife")
                names = [context.name async for context in contexts.list(page_size=1)]
                self.assertEqual(names, ["book", "knife"])
                await contexts.delete("knife")
                with self.assertRaises(goldfinch.NotFoundError):
                    await contexts.get("knife")
                self.server.contexts.breaks = [2, 1]
                await contexts.export_to("book", self.path)
                self.assertEqual(self.path.read_bytes(), self.server.contexts.file)
                self.assertEqual(self.files(), ["book.safetensors"])
                self.path.write_bytes(bytes(3 << 20))
                self.server.contexts.breaks = [None, "after", "before"]
                copy = await contexts.import_from(self.path, "copy")
                self.assertEqual((copy.name, copy.tokens), ("copy", 3 << 20))
                answer = await client.generate("Why?", context=copy, keep_as="answer")
                self.assertEqual(answer.text, "Why?")
                self.assertEqual(self.server.requests[-1].context, "copy")

        asyncio.run(run())
