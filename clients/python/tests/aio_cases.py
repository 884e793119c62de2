"""The client for asyncio."""

import asyncio
import gc
import unittest

import grpc

import certificates
import goldfinch
from fake_server import SECONDS_MAX, FakeServer, echo, fails, fails_at_first
from goldfinch import generate_pb2 as pb


class AsyncClientTest(unittest.IsolatedAsyncioTestCase):
    async def asyncSetUp(self):
        self.server = FakeServer(api_key="secret")
        self.addCleanup(self.server.stop)
        self.server.generate = echo
        self.client = self.connect()

    def connect(self, **options):
        options = {"api_key": "secret", "timeout": SECONDS_MAX, **options}
        client = goldfinch.AsyncClient(self.server.address, **options)
        self.addAsyncCleanup(client.close)
        return client

    async def check_cancelled(self):
        """Without blocking the loop, which has to send the cancellation."""
        cancelled = await asyncio.to_thread(self.server.cancelled.wait, SECONDS_MAX)
        self.assertTrue(cancelled, "the server's call goes on")

    async def test_whole_answer(self):
        answer = await self.client.generate("hello", n=2, seed=5)
        self.assertEqual([sample.text for sample in answer.samples], ["hello", "hello"])
        self.assertEqual((answer.finish_reason, answer.seed, answer.usage.prompt_tokens), ("length", 5, 5))

    async def test_many_at_once(self):
        prompts = [f"prompt {i}" for i in range(32)]
        answers = await asyncio.gather(*(self.client.generate(prompt) for prompt in prompts))
        self.assertEqual([answer.text for answer in answers], prompts)

    async def test_stream(self):
        stream = self.client.stream("hey", progress=True)
        pieces = [piece async for piece in stream]
        self.assertEqual(pieces[0].progress, goldfinch.Progress(1, 3))
        self.assertEqual("".join(piece.text for piece in pieces), "hey")
        self.assertEqual(stream.request_id, "made")

    async def test_other_calls(self):
        self.server.score = lambda *_: iter([pb.ScoreResponse(continuation=0, tokens=[pb.Token(id=3, logprob=-2)])])
        score = await self.client.score("ab", ["c"])
        self.assertEqual(score.continuations[0].logprob, -2)
        ids = await self.client.tokenize("é")
        self.assertEqual(await self.client.detokenize(ids), "é")
        self.assertEqual(await self.client.detokenize_bytes(ids[:1]), b"\xc3")
        self.assertEqual((await self.client.model_info()).name, "fake")
        self.assertTrue((await self.client.cluster_info()).draining)

    async def test_close_reaches_the_server(self):
        self.server.generate = self.server.endless
        stream = self.client.stream("x")
        self.assertEqual((await stream.__anext__()).text, "a")
        stream.close()
        await self.check_cancelled()
        self.assertEqual([piece async for piece in stream], [])

    async def test_close_ends_an_iteration_that_waits(self):
        self.server.generate = self.server.endless
        stream = self.client.stream("x")

        self.assertEqual((await stream.__anext__()).text, "a")

        async def rest():
            return [piece async for piece in stream]

        task = asyncio.create_task(rest())
        self.assertTrue(await asyncio.to_thread(self.server.waiting.wait, SECONDS_MAX))
        stream.close()
        await self.check_cancelled()
        self.assertEqual(await task, [])

    async def test_break_reaches_the_server(self):
        self.server.generate = self.server.endless
        async for _ in self.client.stream("x"):
            break
        gc.collect()
        await self.check_cancelled()

    async def test_with_reaches_the_server(self):
        self.server.generate = self.server.endless
        async with self.client.stream("x") as stream:
            await stream.__anext__()
        await self.check_cancelled()

    async def test_a_cancelled_task_reaches_the_server(self):
        self.server.generate = self.server.endless
        task = asyncio.create_task(self.client.generate("x"))
        self.assertTrue(await asyncio.to_thread(self.server.waiting.wait, SECONDS_MAX))
        task.cancel()
        with self.assertRaises(asyncio.CancelledError):
            await task
        await self.check_cancelled()

    async def test_errors(self):
        self.server.generate = fails(grpc.StatusCode.INVALID_ARGUMENT, "n is 65", [pb.GenerateResponse(text="a")])
        stream = self.client.stream("x")
        self.assertEqual((await stream.__anext__()).text, "a")
        with self.assertRaises(goldfinch.InvalidArgumentError) as caught:
            await stream.__anext__()
        self.assertEqual(caught.exception.message, "n is 65")
        with self.assertRaises(goldfinch.InvalidArgumentError):
            await self.client.detokenize([999])

    async def test_deadline(self):
        self.server.generate = self.server.endless
        with self.assertRaises(goldfinch.DeadlineExceededError):
            await self.client.generate("x", timeout=1)  # the call must have reached the server by then
        await self.check_cancelled()

    async def test_retries(self):
        self.server.generate = fails_at_first(2, echo)
        self.assertEqual((await self.connect(retries=2).generate("hey")).text, "hey")
        self.assertEqual(len(self.server.requests), 3)
        self.server.generate = fails_at_first(1, echo)
        with self.assertRaises(goldfinch.UnavailableError):
            await self.client.generate("hey")

    async def test_key(self):
        with self.assertRaises(goldfinch.UnauthenticatedError):
            await self.connect(api_key="wrong").tokenize("x")
        with self.assertRaises(goldfinch.UnauthenticatedError):
            await self.connect(api_key=None).generate("x")


class AsyncTlsTest(unittest.IsolatedAsyncioTestCase):
    async def test_right_and_wrong_root(self):
        certs = certificates.Certificates()
        self.addCleanup(certs.close)
        pair = (certs.server_key.read_bytes(), certs.server_cert.read_bytes())
        server = FakeServer(grpc.ssl_server_credentials([pair]))
        self.addCleanup(server.stop)
        server.generate = echo

        def connect(root_cert):
            return goldfinch.AsyncClient(server.address, root_cert=root_cert, timeout=SECONDS_MAX)

        async with connect(certs.root_cert) as client:
            self.assertEqual((await client.generate("hey")).text, "hey")
        async with connect(certs.other_root_cert) as client:
            with self.assertRaises(goldfinch.UnavailableError):
                await client.generate("hey")
