"""The client that blocks."""

import gc
import pathlib
import pickle
import threading
import time
import unittest

import grpc

import certificates
import goldfinch
from fake_server import SECONDS_MAX, FakeServer, echo, fails, fails_at_first
from goldfinch import generate_pb2 as pb


class ClientTest(unittest.TestCase):
    def setUp(self):
        self.server = FakeServer()
        self.addCleanup(self.server.stop)
        self.server.generate = echo
        self.client = self.connect()

    def connect(self, **options):
        client = goldfinch.Client(self.server.address, **{"timeout": SECONDS_MAX, **options})
        self.addCleanup(client.close)
        return client

    def check_cancelled(self):
        self.assertTrue(self.server.cancelled.wait(SECONDS_MAX), "the server's call goes on")


class GenerateTest(ClientTest):
    def test_whole_answer(self):
        answer = self.client.generate("hello", seed=5, request_id="mine", logprobs=1)
        self.assertEqual((answer.text, answer.finish_reason), ("hello", "length"))
        self.assertEqual((answer.request_id, answer.seed), ("mine", 5))
        self.assertEqual([token.id for token in answer.tokens], [byte + 1 for byte in b"hello"])
        self.assertEqual(answer.tokens[0].logprob, -0.5)
        self.assertEqual(answer.tokens[0].top, (goldfinch.Logprob(7, -0.25),))
        self.assertEqual((answer.usage.prompt_tokens, answer.usage.recoveries), (5, 2))

    def test_samples_are_put_together_apart(self):
        self.server.generate = lambda *_: iter(
            [
                pb.GenerateResponse(index=1, text="b", request_id="r", seed=3),
                pb.GenerateResponse(index=0, text="a"),
                pb.GenerateResponse(index=1, text="B", finish_reason=pb.STOP),
                pb.GenerateResponse(index=0, finish_reason=pb.END_OF_TEXT, usage=pb.Usage(prompt_tokens=9)),
            ]
        )
        answer = self.client.generate("x", n=3)
        self.assertEqual([sample.text for sample in answer.samples], ["a", "bB", ""])
        self.assertEqual([sample.finish_reason for sample in answer.samples], ["end of text", "stop", None])
        self.assertEqual((answer.seed, answer.usage.prompt_tokens), (3, 9))

    def test_request_has_what_was_given(self):
        sampling = goldfinch.Sampling(temperature=0, top_k=4, logit_bias={3: 1.5}, banned_tokens=[5])
        self.client.generate(
            [1, 2, 3], max_tokens=0, n=2, sampling=sampling, stop="x", stop_ids=[9], ignore_eos=True, priority=-3
        )
        request = self.server.requests[-1]
        self.assertEqual(list(request.ids.ids), [1, 2, 3])
        self.assertTrue(request.HasField("max_tokens"))
        self.assertEqual((request.max_tokens, request.n, request.priority), (0, 2, -3))
        self.assertEqual((list(request.stop), list(request.stop_ids), request.ignore_eos), (["x"], [9], True))
        self.assertTrue(request.sampling.HasField("temperature"))
        self.assertFalse(request.sampling.HasField("top_p"))
        self.assertEqual((request.sampling.top_k, dict(request.sampling.logit_bias)), (4, {3: 1.5}))
        self.assertEqual(list(request.sampling.banned_tokens), [5])

    def test_what_was_not_given_is_not_set(self):
        self.client.generate("x")
        request = self.server.requests[-1]
        for field in ("max_tokens", "seed", "logprobs", "sampling"):
            self.assertFalse(request.HasField(field), field)

    def test_unknown_options_are_refused(self):
        with self.assertRaises(TypeError):
            self.client.generate("x", max_token=3)


class StreamTest(ClientTest):
    def test_pieces_in_order(self):
        stream = self.client.stream("hey", n=2, progress=True, seed=4)
        self.assertEqual(stream.request_id, "")
        pieces = list(stream)
        self.assertEqual((stream.request_id, stream.seed), ("made", 4))
        self.assertEqual(pieces[0].progress, goldfinch.Progress(1, 3))
        texts = [(piece.index, piece.text) for piece in pieces if piece.text]
        self.assertEqual(texts, [(index, character) for character in "hey" for index in (0, 1)])
        self.assertEqual(pieces[-1].usage.completion_tokens, 6)
        self.assertIsNone(pieces[-2].usage)

    def test_pieces_come_as_they_are_made(self):
        go_on = threading.Event()

        def script(_, context):
            yield pb.GenerateResponse(text="a")
            if not go_on.wait(SECONDS_MAX):
                context.abort(grpc.StatusCode.INTERNAL, "the first piece was held back")
            yield pb.GenerateResponse(text="b")

        self.server.generate = script
        stream = self.client.stream("x")
        self.assertEqual(next(stream).text, "a")
        go_on.set()
        self.assertEqual([piece.text for piece in stream], ["b"])

    def test_close_reaches_the_server(self):
        self.server.generate = self.server.endless
        stream = self.client.stream("x")
        self.assertEqual(next(stream).text, "a")
        stream.close()
        self.check_cancelled()
        self.assertEqual(list(stream), [])

    def test_close_from_another_thread_ends_the_iteration(self):
        self.server.generate = self.server.endless
        stream = self.client.stream("x")
        self.assertEqual(next(stream).text, "a")

        def close():
            self.server.waiting.wait(SECONDS_MAX)
            stream.close()

        thread = threading.Thread(target=close)
        thread.start()
        self.assertEqual(list(stream), [])
        thread.join()
        self.check_cancelled()

    def test_break_reaches_the_server(self):
        self.server.generate = self.server.endless
        for _ in self.client.stream("x"):
            break
        gc.collect()
        self.check_cancelled()

    def test_with_reaches_the_server(self):
        self.server.generate = self.server.endless
        with self.client.stream("x") as stream:
            next(stream)
        self.check_cancelled()


class OtherCallsTest(ClientTest):
    def test_score(self):
        def script(request, _):
            yield pb.ScoreResponse(request_id="r", prompt=True, first=1, tokens=[pb.Token(id=2, logprob=-1)])
            yield pb.ScoreResponse(continuation=0, tokens=[pb.Token(id=3, logprob=-2)], logits=b"ab")
            yield pb.ScoreResponse(continuation=1, tokens=[pb.Token(id=4, logprob=-4)])
            yield pb.ScoreResponse(continuation=1, first=1, tokens=[pb.Token(id=5, logprob=-8)], logits=b"cd")
            yield pb.ScoreResponse(usage=pb.Usage(prompt_tokens=2))

        self.server.score = script
        score = self.client.score("ab", ["c", [4, 5]], score_prompt=True, logits=True)
        self.assertEqual([text.logprob for text in score.continuations], [-2, -12])
        self.assertEqual([text.logits for text in score.continuations], [b"ab", b"cd"])
        self.assertEqual([token.id for token in score.prompt.tokens], [2])
        self.assertEqual((score.request_id, score.usage.prompt_tokens), ("r", 2))
        request = self.server.requests[-1]
        self.assertEqual(request.continuations[0].text, "c")
        self.assertEqual(list(request.continuations[1].ids.ids), [4, 5])
        self.assertIsNone(self.client.score("ab", ["c", "d"]).prompt)
        with self.assertRaisesRegex(TypeError, "expected a list"):
            self.client.score("ab", "cd")

    def test_tokenize_and_back(self):
        ids = self.client.tokenize("é!")
        self.assertEqual(ids, [0xC4, 0xAA, 0x22])
        self.assertEqual(self.client.detokenize(ids), "é!")
        self.assertEqual(self.client.detokenize(ids[:1]), "\ufffd")
        self.assertEqual(self.client.detokenize_bytes(ids[:1]), b"\xc3")

    def test_infos(self):
        self.assertEqual(self.client.model_info().name, "fake")
        self.assertTrue(self.client.cluster_info().draining)

    def test_answers_larger_than_the_limit_of_grpc(self):
        text = "a" * 3_000_000  # ids of two bytes
        self.assertEqual(len(self.client.tokenize(text[:10])), 10)
        self.server.score = lambda *_: iter([pb.ScoreResponse(continuation=0, logits=bytes(5 << 20))])
        self.assertEqual(len(self.client.score("a", ["b"], logits=True).continuations[0].logits), 5 << 20)


class ErrorTest(ClientTest):
    def test_each_code_has_its_class(self):
        for code, kind, builtin in (
            (grpc.StatusCode.INVALID_ARGUMENT, goldfinch.InvalidArgumentError, ValueError),
            (grpc.StatusCode.UNAUTHENTICATED, goldfinch.UnauthenticatedError, Exception),
            (grpc.StatusCode.RESOURCE_EXHAUSTED, goldfinch.ResourceExhaustedError, Exception),
            (grpc.StatusCode.DEADLINE_EXCEEDED, goldfinch.DeadlineExceededError, TimeoutError),
            (grpc.StatusCode.UNAVAILABLE, goldfinch.UnavailableError, ConnectionError),
            (grpc.StatusCode.NOT_FOUND, goldfinch.NotFoundError, LookupError),
            (grpc.StatusCode.ALREADY_EXISTS, goldfinch.AlreadyExistsError, Exception),
            (grpc.StatusCode.ABORTED, goldfinch.AbortedError, Exception),
            (grpc.StatusCode.INTERNAL, goldfinch.GoldfinchError, Exception),
        ):
            with self.subTest(code):
                message = "max_tokens is 9, the limit is 8"
                self.server.generate = fails(code, message)
                with self.assertRaises(kind) as caught:
                    self.client.generate("x")
                self.assertIs(type(caught.exception), kind)
                self.assertIsInstance(caught.exception, builtin)
                self.assertEqual((caught.exception.code, caught.exception.message), (code, message))
                self.assertEqual(str(caught.exception), f"{code.name}: {message}")
                self.assertEqual(pickle.loads(pickle.dumps(caught.exception)).message, caught.exception.message)

    def test_of_unary_calls(self):
        with self.assertRaisesRegex(goldfinch.InvalidArgumentError, "the limit is 256"):
            self.client.detokenize([999])

    def test_after_some_pieces(self):
        self.server.generate = fails(grpc.StatusCode.UNAVAILABLE, "gone", [pb.GenerateResponse(text="a")])
        stream = self.client.stream("x")
        self.assertEqual(next(stream).text, "a")
        with self.assertRaises(goldfinch.UnavailableError):
            next(stream)

    def test_deadline(self):
        self.server.generate = self.server.endless
        start = time.monotonic()
        with self.assertRaises(goldfinch.DeadlineExceededError):
            self.client.generate("x", timeout=0.2)
        self.assertLess(time.monotonic() - start, SECONDS_MAX / 2)
        self.check_cancelled()

    def test_deadline_of_the_client(self):
        self.server.generate = self.server.endless
        with self.assertRaises(goldfinch.DeadlineExceededError):
            self.connect(timeout=0.2).generate("x")

    def test_no_server(self):
        with goldfinch.Client("127.0.0.1:1") as client:
            with self.assertRaises(goldfinch.UnavailableError):
                client.tokenize("x")
            with self.assertRaises(goldfinch.UnavailableError):
                client.generate("x")


class RetryTest(ClientTest):
    def test_is_off_by_default(self):
        self.server.generate = fails_at_first(1, echo)
        with self.assertRaises(goldfinch.UnavailableError):
            self.client.generate("x")

    def test_until_it_is_there(self):
        self.server.generate = fails_at_first(2, echo)
        self.assertEqual(self.connect(retries=2).generate("hey").text, "hey")
        self.assertEqual(len(self.server.requests), 3)

    def test_no_more_often_than_told(self):
        self.server.generate = fails_at_first(3, echo)
        with self.assertRaises(goldfinch.UnavailableError):
            self.connect(retries=2).generate("x")
        self.assertEqual(len(self.server.requests), 3)

    def test_not_after_the_first_piece_nor_for_other_errors(self):
        client = self.connect(retries=3)
        for code, after in (
            (grpc.StatusCode.UNAVAILABLE, [pb.GenerateResponse(text="a")]),
            (grpc.StatusCode.RESOURCE_EXHAUSTED, []),
        ):
            with self.subTest(code):
                self.server.requests.clear()
                self.server.generate = fails(code, "no", after)
                with self.assertRaises(goldfinch.GoldfinchError):
                    client.generate("x")
                self.assertEqual(len(self.server.requests), 1)

    def test_within_the_timeout(self):
        start = time.monotonic()
        with goldfinch.Client("127.0.0.1:1", retries=1000, timeout=0.3) as client:
            with self.assertRaises(goldfinch.GoldfinchError):
                client.tokenize("x")
        self.assertLess(time.monotonic() - start, SECONDS_MAX / 2)


class KeyTest(ClientTest):
    def setUp(self):
        super().setUp()
        self.server = FakeServer(api_key="secret")
        self.addCleanup(self.server.stop)
        self.server.generate = echo

    def test_right_wrong_and_none(self):
        client = self.connect(api_key="secret")
        self.assertEqual(client.generate("hey").text, "hey")
        self.assertEqual(client.tokenize("a"), [98])
        for key in ("wrong", None):
            with self.subTest(key):
                client = self.connect(api_key=key)
                with self.assertRaises(goldfinch.UnauthenticatedError):
                    client.generate("hey")
                with self.assertRaises(goldfinch.UnauthenticatedError):
                    client.tokenize("a")


class TlsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.certs = certificates.Certificates()
        cls.addClassCleanup(cls.certs.close)

    def serve(self, mutual):
        certs = self.certs
        credentials = grpc.ssl_server_credentials(
            [(certs.server_key.read_bytes(), certs.server_cert.read_bytes())],
            certs.root_cert.read_bytes() if mutual else None,
            mutual,
        )
        server = FakeServer(credentials, api_key="secret")
        self.addCleanup(server.stop)
        server.generate = echo
        return server

    def says(self, server, **options):
        with goldfinch.Client(server.address, api_key="secret", timeout=SECONDS_MAX, **options) as client:
            return client.generate("hey").text

    def test_tls(self):
        server = self.serve(mutual=False)
        self.assertEqual(self.says(server, root_cert=self.certs.root_cert), "hey")
        self.assertEqual(self.says(server, root_cert=self.certs.root_cert.read_bytes()), "hey")
        for options in ({"root_cert": self.certs.other_root_cert}, {}):
            with self.subTest(options), self.assertRaises(goldfinch.UnavailableError):
                self.says(server, **options)

    def test_mutual_tls(self):
        server = self.serve(mutual=True)
        own = {"client_cert": self.certs.client_cert, "client_key": self.certs.client_key}
        self.assertEqual(self.says(server, root_cert=str(self.certs.root_cert), **own), "hey")
        others = {"client_cert": self.certs.other_client_cert, "client_key": self.certs.other_client_key}
        for options in ({}, others):
            with self.subTest(options), self.assertRaises(goldfinch.UnavailableError):
                self.says(server, root_cert=self.certs.root_cert, **options)

    def test_options_that_do_not_go_together(self):
        for options in (
            {"root_cert": b"x", "client_cert": b"x"},
            {"root_cert": b"x", "client_key": b"x"},
            {"client_cert": b"x", "client_key": b"x"},
        ):
            with self.subTest(options), self.assertRaises(ValueError):
                goldfinch.Client("localhost:1", **options)
        with self.assertRaises(FileNotFoundError):
            goldfinch.Client("localhost:1", root_cert="/no/such/file")


class PackageTest(unittest.TestCase):
    def test_is_typed_and_exports_what_it_says(self):
        folder = pathlib.Path(goldfinch.__file__).parent
        for name in ("py.typed", "messages.binpb", "generate_pb2.py", "generate_pb2.pyi", "contexts_pb2.pyi"):
            self.assertTrue((folder / name).is_file(), name)
        for name in goldfinch.__all__:
            self.assertTrue(hasattr(goldfinch, name), name)
