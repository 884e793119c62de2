"""A server under clients: right answers, and nothing left behind by those that leave, stall, lie or flood."""

import asyncio
import json
import signal
import socket
import threading
import time

import grpc

import certificates
import goldfinch
from cluster import SECONDS_MAX, SERVICE, ClusterTest, metric_sum, wait_until
from goldfinch import GREEDY
from goldfinch import generate_pb2 as pb
from program import DEMO_MODEL, PAGE, flags, generate, run

PROMPT = "And he said unto them, "
DOCUMENT = "The number of Kodaru is 41906.\n" + PAGE[:1500]
QUESTION = "What is the number of Kodaru? "

GREEDY_FLAGS = {"temperature": 0, "presence_penalty": 0, "frequency_penalty": 0}


def remote(address, prompt, **values):
    return ["generate", *flags(**{"server": address, **GREEDY_FLAGS, "prompt": prompt, **values})]


class AnswerTest(ClusterTest):
    def said_here(self, prompt, **values):
        result = run(*generate(prompt, json=True, **values))
        self.assertEqual(result.code, 0, result)
        return json.loads(result.stdout)

    def check_answers(self, client):
        for prompt, tokens in ((PROMPT, 40), (DOCUMENT + QUESTION, 5), ("x", 1), (PROMPT, 0)):
            with self.subTest(prompt[:20], tokens=tokens):
                here = self.said_here(prompt, max_tokens=tokens, logprobs=2)
                answer = client.generate(prompt, max_tokens=tokens, sampling=GREEDY, logprobs=2)
                self.assertEqual(answer.text, here["text"])
                self.assertEqual(answer.finish_reason, here["finish_reason"])
                self.assertEqual([token.id for token in answer.tokens], [token["id"] for token in here["tokens"]])
                for token, expected in zip(answer.tokens, here["tokens"]):
                    self.assertAlmostEqual(token.logprob, expected["logprob"], delta=1e-5)
                    self.assertEqual([top.id for top in token.top], [top["id"] for top in expected["top"]])
                self.assertEqual(answer.usage.prompt_tokens, here["prompt_tokens"])
                self.assertEqual(answer.usage.cache_bytes, here["cache_bytes"])
                self.assertEqual(answer.usage.transformer_cache_bytes, here["transformer_cache_bytes"])
        # Draws are the same too.
        drawn = self.said_here(PROMPT, max_tokens=40, seed=7, temperature=1.2, top_p=0.95)
        sampling = goldfinch.Sampling(temperature=1.2, top_p=0.95, presence_penalty=0, frequency_penalty=0)
        answer = client.generate(PROMPT, max_tokens=40, seed=7, sampling=sampling)
        self.assertEqual(answer.text, drawn["text"])

    def test_of_an_embedded_server_are_those_of_the_program(self):
        self.check_answers(self.serve())

    def test_of_separate_processes_are_those_of_the_program(self):
        self.check_answers(self.form())

    def test_through_the_program_itself(self):
        self.serve()
        for values in ({}, {"json": True}):
            with self.subTest(values):
                there = run(*remote(self.cluster.address, PROMPT, max_tokens=20, seed=3, **values))
                here = run(*generate(PROMPT, max_tokens=20, seed=3, **values))
                self.assertEqual((there.code, here.code), (0, 0), there)
                if not values:
                    self.assertEqual(there.stdout, here.stdout)
                    self.assertEqual(there.stderr.splitlines()[2], here.stderr.splitlines()[2])
                    continue
                there, here = json.loads(there.stdout), json.loads(here.stdout)
                for key in here.keys() - {"prefill_seconds", "decode_seconds", "memory"}:  # a server's is its status
                    self.assertEqual(there[key], here[key], key)

    def test_samples_are_the_draws_of_their_own_seeds(self):
        client = self.serve()
        options = {"max_tokens": 24, "sampling": goldfinch.Sampling(temperature=1.5, top_p=1)}
        together = client.generate(PROMPT, n=4, seed=10, **options)
        alone = [client.generate(PROMPT, seed=10 + index, **options).text for index in range(4)]
        self.assertEqual([sample.text for sample in together.samples], alone)
        self.assertEqual(len(set(alone)), 4)

    def test_status_and_metrics_count_what_was_done(self):
        client = self.form()
        usage = client.generate(PROMPT, n=3, max_tokens=10, sampling=GREEDY, ignore_eos=True).usage
        info = self.cluster.wait_idle()
        self.assertEqual((usage.prompt_tokens, usage.completion_tokens), (len(PROMPT), 30))
        self.assertEqual((info.prompt_tokens, info.completion_tokens), (len(PROMPT), 30))

        def idle_metrics():
            metrics = self.cluster.metrics()
            return metric_sum(metrics, "goldfinch_num_requests_running") == 0 and metrics

        metrics = wait_until(idle_metrics, "no request runs, say the metrics")
        self.assertEqual(metric_sum(metrics, "goldfinch_prompt_tokens_total"), len(PROMPT))
        self.assertEqual(metric_sum(metrics, "goldfinch_generation_tokens_total"), 30)
        self.assertEqual(metric_sum(metrics, "goldfinch_reread_tokens_total"), 2, "the last of the prompt")
        shown = run("status", "--server", self.cluster.address)
        self.assertEqual(shown.code, 0, shown)
        for worker in self.cluster.workers:
            self.assertIn(worker, shown.stdout.decode())


class ManyStreamsTest(ClusterTest):
    STREAMS = 64

    async def one(self, client, number):
        """Returns what became of it."""
        prompt = PAGE[number * 7 : number * 7 + self.random.choice([1, 40, 700])]
        options = {"max_tokens": self.random.choice([1, 20, 400]), "n": self.random.choice([1, 1, 3])}
        fate = self.random.choice(["finish", "finish", "close", "cancel", "deadline"])
        timeout = self.random.uniform(0.01, 0.5) if fate == "deadline" else SECONDS_MAX
        stop_after = self.random.randrange(30)

        async def read():
            stream = client.stream(prompt, sampling=GREEDY, ignore_eos=True, timeout=timeout, **options)
            tokens, pieces = 0, 0
            async for piece in stream:
                tokens += len(piece.tokens)
                pieces += 1
                if fate == "close" and pieces > stop_after:
                    stream.close()
                    return "close"
            self.assertEqual(tokens, options["max_tokens"] * options["n"], "tokens are missing")
            return "finish"

        task = asyncio.create_task(read())
        if fate == "cancel":
            await asyncio.wait([task], timeout=self.random.uniform(0, 0.5))
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            return "cancel"
        except goldfinch.DeadlineExceededError:
            self.assertEqual(fate, "deadline")
            return "deadline"

    async def all(self):
        async with self.cluster.async_client() as client:
            return await asyncio.gather(*(self.one(client, number) for number in range(self.STREAMS)))

    def check_nothing_is_left(self, client):
        before = client.generate(PROMPT, max_tokens=30, sampling=GREEDY).text
        fates = asyncio.run(self.all())
        self.assertEqual(len(fates), self.STREAMS)
        self.assertGreater(len(set(fates)), 2, fates)
        self.cluster.wait_idle()
        self.assertEqual(client.generate(PROMPT, max_tokens=30, sampling=GREEDY).text, before)
        self.cluster.wait_idle()
        self.assertEqual(self.cluster.info().group_generation, 1, "the group was lost on the way")

    def test_leave_nothing_behind_in_an_embedded_server(self):
        self.check_nothing_is_left(self.serve(max_num_seqs=16))

    def test_leave_nothing_behind_in_separate_processes(self):
        self.check_nothing_is_left(self.form(max_num_seqs=16))


class SlowReaderTest(ClusterTest):
    def not_reading(self, request):
        """A call whose responses nobody takes, with the least that gRPC may buffer for it."""
        options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16)]
        channel = grpc.insecure_channel(self.cluster.address, options=options)
        self.addCleanup(channel.close)
        method = channel.unary_stream(
            f"/{SERVICE}/Generate",
            request_serializer=pb.GenerateRequest.SerializeToString,
            response_deserializer=pb.GenerateResponse.FromString,
        )
        return method(request, timeout=SECONDS_MAX)

    def test_is_paused_then_given_up_and_blocks_nobody(self):
        client = self.serve(stall_timeout=2)
        # Log-probabilities make long messages, and samples many of them.
        slow = self.not_reading(pb.GenerateRequest(text=PROMPT, n=32, max_tokens=30_000, ignore_eos=True, logprobs=20))
        self.cluster.wait_info(lambda info: info.requests_running == 1, "it runs")
        self.assertEqual(len(client.generate(PROMPT, max_tokens=50, ignore_eos=True).tokens), 50)
        info = self.cluster.wait_idle()
        # What was made for it is what fits the buffers.
        self.assertLess(info.completion_tokens, 32 * 500)
        with self.assertRaises(grpc.RpcError) as caught:
            list(slow)
        # The second, if it reads so late that the status did not go through either.
        self.assertIn(caught.exception.code(), (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED))
        self.assertEqual(len(client.generate(PROMPT, max_tokens=50, ignore_eos=True).tokens), 50)

    def test_that_reads_on_in_time_gets_everything(self):
        client = self.serve()
        tokens = 400
        slow = self.not_reading(pb.GenerateRequest(text=PROMPT, n=8, max_tokens=tokens, ignore_eos=True, logprobs=20))
        made = []

        def paused():
            """Two looks, a whole request of another client between them, see no token more."""
            made.append(self.cluster.info().completion_tokens)
            client.generate(PROMPT, max_tokens=50, ignore_eos=True)
            return len(made) > 1 and made[-1] == made[-2] + 50

        wait_until(paused, "it is paused")
        read = [0] * 8
        for response in slow:
            read[response.index] += len(response.tokens)
        self.assertEqual(read, [tokens] * 8)
        self.cluster.wait_idle()


class BadRequestTest(ClusterTest):
    MESSAGE_BYTES_MAX = 1 << 20
    MODEL_LEN_MAX = 1 << 16

    def setUp(self):
        super().setUp()
        self.client = self.serve(max_message_bytes=self.MESSAGE_BYTES_MAX, max_model_len=self.MODEL_LEN_MAX)

    def check_alive(self):
        self.cluster.wait_idle()
        self.assertEqual(len(self.client.generate(PROMPT, max_tokens=5, ignore_eos=True).tokens), 5)

    def raw(self, method, request):
        """The code that a call with these bytes ends with."""
        with grpc.insecure_channel(self.cluster.address) as channel:
            call = channel.unary_stream("/" + method)(request, timeout=SECONDS_MAX)
            try:
                list(call)
            except grpc.RpcError as error:
                return error.code()
        return grpc.StatusCode.OK

    def test_oversized(self):
        with self.assertRaises(goldfinch.ResourceExhaustedError):
            self.client.generate("a" * (self.MESSAGE_BYTES_MAX + 1))
        with self.assertRaisesRegex(goldfinch.InvalidArgumentError, str(self.MODEL_LEN_MAX)):
            self.client.generate("a" * (self.MODEL_LEN_MAX + 1))
        with self.assertRaises(goldfinch.InvalidArgumentError):
            self.client.generate("a", max_tokens=self.MODEL_LEN_MAX)
        self.check_alive()

    def test_fields_out_of_range(self):
        for options, says in (
            ({"prompt": ""}, "empty"),
            ({"prompt": []}, "empty"),
            ({"prompt": [257]}, "257"),
            ({"prompt": [2**32 - 1]}, "4294967295"),
            ({"n": 65}, "64"),
            ({"logprobs": 21}, "20"),
            ({"priority": 101}, "100"),
            ({"stop": ["x"] * 65}, "64"),
            ({"stop": ["x" * 1025]}, "1024"),
            ({"stop": [""]}, "stop"),
            ({"stop_ids": [300]}, "300"),
            ({"request_id": "a" * 129}, "128"),
            ({"request_id": "two\nlines"}, "request_id"),
            ({"sampling": goldfinch.Sampling(temperature=-1)}, "temperature"),
            ({"sampling": goldfinch.Sampling(temperature=float("nan"))}, "temperature"),
            ({"sampling": goldfinch.Sampling(top_p=1.5)}, "top_p"),
            ({"sampling": goldfinch.Sampling(logit_bias={300: 1.0})}, "300"),
            ({"sampling": goldfinch.Sampling(banned_tokens=range(257))}, "banned_tokens"),
        ):
            with self.subTest(options), self.assertRaises(goldfinch.InvalidArgumentError) as caught:
                self.client.generate(**{"prompt": "a", **options})
            self.assertIn(says, caught.exception.message.replace(",", ""))
        self.check_alive()

    def test_malformed_messages(self):
        generate = f"{SERVICE}/Generate"
        not_utf8 = b"\x0a\x02\xc3\x28"
        for request in (b"\xff", b"\x0a\xff\xff\xff\xff\x0f", not_utf8, self.random.randbytes(1000)):
            with self.subTest(request[:8]):
                self.assertNotEqual(self.raw(generate, request), grpc.StatusCode.OK)
        self.assertEqual(self.raw(generate, b""), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertEqual(self.raw(f"{SERVICE}/Nothing", b""), grpc.StatusCode.UNIMPLEMENTED)
        self.check_alive()

    def test_bytes_that_are_not_grpc(self):
        preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        for content in (b"GET / HTTP/1.1\r\n\r\n", self.random.randbytes(4096), preface + b"\0" * 99):
            with socket.create_connection(("127.0.0.1", self.cluster.ports.grpc), timeout=SECONDS_MAX) as connection:
                connection.sendall(content)
        self.check_alive()


class AccessTest(ClusterTest):
    def test_keys(self):
        first, second = "the-first-api-key", "the-second-api-key"
        keys = self.cluster.folder / "keys"
        keys.write_text(f"{first}\n{second}\n")
        self.cluster.start_serve(api_key_file=keys, pipeline_parallel_size=2)
        self.cluster.wait_ready()  # health needs no key
        for key in (first, second):
            answer = self.cluster.client(api_key=key).generate(PROMPT, max_tokens=3, ignore_eos=True)
            self.assertEqual(len(answer.tokens), 3)
        for key in (None, "", first + "2"):  # after 20 wrong keys, calls from this address would be refused at once
            client = self.cluster.client(api_key=key)
            for call in (
                lambda: client.generate(PROMPT),
                lambda: client.score(PROMPT, ["a"]),
                lambda: client.tokenize("a"),
                lambda: client.detokenize([1]),
                client.model_info,
                client.cluster_info,
            ):
                with self.subTest(key), self.assertRaises(goldfinch.UnauthenticatedError):
                    call()
        key = self.cluster.folder / "key"
        key.write_text(f"{second}\n")
        self.assertEqual(run(*remote(self.cluster.address, PROMPT, max_tokens=3, api_key_file=key)).code, 0)
        result = run(*remote(self.cluster.address, PROMPT, max_tokens=3))
        self.assertEqual((result.code, result.stdout), (1, b""))
        self.assertIn("UNAUTHENTICATED", result.stderr)

    def test_a_public_address_without_keys_is_named_in_the_log(self):
        self.cluster.start_serve(host="0.0.0.0")
        self.cluster.wait_ready()
        log = self.cluster.server.log.read_text()
        self.assertEqual(log.count("serves everybody who can reach it: set --api-key-file"), 1)
        self.assertIn("is not encrypted: set --grpc-server-cert", log)

    def test_changed_keys(self):
        keys = self.cluster.folder / "keys"
        keys.write_text("the-first-api-key\n")
        self.cluster.start_serve(api_key_file=keys)
        self.cluster.wait_ready()
        first = self.cluster.client(api_key="the-first-api-key")
        first.cluster_info()
        stream = first.stream(PROMPT, max_tokens=400, ignore_eos=True)
        pieces = [next(stream)]
        keys.write_text(
            "keys:\n- {name: user, key: the-first-api-key, expires: 2020-01-01T00:00:00Z}\n"
            "- {name: guest, key: the-second-api-key}\n- {name: admin, key: the-third-api-key, roles: [operator]}\n"
        )
        admin = self.cluster.client(api_key="the-third-api-key")

        def changed():
            try:
                return admin.cluster_info() is not None
            except goldfinch.UnauthenticatedError:
                time.sleep(0.5)  # more than 20 wrong keys in a minute would be throttled
                return False

        wait_until(changed, "the keys are read again")
        pieces += stream
        self.assertEqual(sum(len(piece.tokens) for piece in pieces), 400)
        with self.assertRaisesRegex(goldfinch.UnauthenticatedError, "expired"):
            first.tokenize("a")
        guest = self.cluster.client(api_key="the-second-api-key")
        self.assertTrue(guest.tokenize("a"))
        with self.assertRaisesRegex(goldfinch.GoldfinchError, "operator"):
            guest.cluster_info()

    def test_tls(self):
        certs = certificates.Certificates()
        self.addCleanup(certs.close)
        server = {"grpc_server_cert": certs.server_cert, "grpc_server_key": certs.server_key}
        self.cluster.start_serve(**server)
        self.cluster.connect_with(root_cert=certs.root_cert)
        self.cluster.wait_info(lambda info: info.groups and info.groups[0].state == pb.READY, "ready")
        self.assertEqual(len(self.cluster.client().generate(PROMPT, max_tokens=3, ignore_eos=True).tokens), 3)
        for wrong in ({"root_cert": certs.other_root_cert}, {"root_cert": None}):
            with self.subTest(wrong), self.assertRaises(goldfinch.UnavailableError):
                self.cluster.client(**wrong).model_info()
        right = remote(self.cluster.address, PROMPT, max_tokens=3, grpc_root_cert=certs.root_cert)
        self.assertEqual(run(*right).code, 0)
        wrong = run(*remote(self.cluster.address, PROMPT, max_tokens=3, grpc_root_cert=certs.other_root_cert))
        self.assertEqual(wrong.code, 1, wrong)
        self.assertRegex(wrong.stderr, r"\Agoldfinch: [^\n]*UNAVAILABLE[^\n]*\n\Z")

    def test_mutual_tls(self):
        certs = certificates.Certificates()
        self.addCleanup(certs.close)
        server = {"grpc_server_cert": certs.server_cert, "grpc_server_key": certs.server_key}
        self.cluster.start_serve(**server, grpc_root_cert=certs.root_cert)
        own = {"client_cert": certs.client_cert, "client_key": certs.client_key}
        self.cluster.connect_with(root_cert=certs.root_cert)
        others = {"client_cert": certs.other_client_cert, "client_key": certs.other_client_key}
        for wrong in ({}, others):
            with self.subTest(wrong), self.assertRaises(goldfinch.UnavailableError):
                self.cluster.client(**wrong).model_info()
        self.cluster.connect_with(root_cert=certs.root_cert, **own)
        self.cluster.wait_info(lambda info: info.groups and info.groups[0].state == pb.READY, "ready")
        self.assertEqual(len(self.cluster.client().generate(PROMPT, max_tokens=3, ignore_eos=True).tokens), 3)

    def test_workers_of_a_cluster_with_tls(self):
        certs = certificates.Certificates()
        self.addCleanup(certs.close)
        server = {"cluster_server_cert": certs.server_cert, "cluster_server_key": certs.server_key}
        self.cluster.start_coordinator(**server, cluster_root_cert=certs.root_cert, pipeline_parallel_size=2)
        stranger = {"cluster_client_cert": certs.other_client_cert, "cluster_client_key": certs.other_client_key}
        own = {"cluster_client_cert": certs.client_cert, "cluster_client_key": certs.client_key}
        self.cluster.start_worker("stranger", cluster_root_cert=certs.root_cert, **stranger)
        for name in ("w0", "w1"):
            self.cluster.start_worker(name, cluster_root_cert=certs.root_cert, **own)
        self.cluster.wait_ready()
        info = self.cluster.info()
        self.assertEqual({stage.worker for stage in info.groups[0].stages}, {"w0", "w1"})
        self.assertEqual(list(info.spare_workers), [])
        self.assertEqual(len(self.cluster.client().generate(PROMPT, max_tokens=3, ignore_eos=True).tokens), 3)


class DrainTest(ClusterTest):
    TOKENS = 1500

    def drain(self, client, tokens):
        """A stream of so many tokens that has begun when the server is told to end; new requests are refused."""
        stream = client.stream(PROMPT, max_tokens=tokens, ignore_eos=True, sampling=GREEDY)
        pieces = [next(stream)]
        self.cluster.server.terminate()
        self.cluster.wait_info(lambda info: info.draining, "draining")
        with self.assertRaises(goldfinch.UnavailableError):
            client.generate(PROMPT, max_tokens=1)
        return stream, pieces

    def check_running_requests_finish(self, client):
        stream, pieces = self.drain(client, self.TOKENS)
        pieces += stream
        self.assertEqual(sum(len(piece.tokens) for piece in pieces), self.TOKENS)
        self.assertEqual(pieces[-1].usage.completion_tokens, self.TOKENS)
        self.assertEqual(self.cluster.server.wait(), 0)

    def test_running_requests_finish_in_an_embedded_server(self):
        self.check_running_requests_finish(self.serve())

    def test_running_requests_finish_in_separate_processes(self):
        self.check_running_requests_finish(self.form())
        for worker in self.cluster.workers.values():
            worker.terminate()
        self.assertEqual([worker.wait() for worker in self.cluster.workers.values()], [0, 0, 0])

    def test_what_takes_too_long_ends_with_unavailable(self):
        client = self.serve(shutdown_timeout=0.5)
        stream, _ = self.drain(client, 1_000_000)
        with self.assertRaises(goldfinch.UnavailableError):
            for _ in stream:
                pass
        self.assertEqual(self.cluster.server.wait(), 0)

    def test_an_idle_server_ends_at_once(self):
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(number):
                self.serve()
                self.cluster.server.send(number)
                self.assertEqual(self.cluster.server.wait(), 0)

    def test_a_second_server_at_the_same_port_says_so(self):
        self.serve()
        result = run("serve", *flags(model=DEMO_MODEL, grpc_port=self.cluster.ports.grpc, metrics_port=-1))
        self.assertEqual(result.code, 1, result)
        self.assertIn(str(self.cluster.ports.grpc), result.stderr)


class CoordinatorDeathTest(ClusterTest):
    def test_clients_see_unavailable_and_workers_come_back(self):
        client = self.form(2)
        before = client.generate(PROMPT, max_tokens=10, sampling=GREEDY).text
        stream = client.stream(PROMPT, max_tokens=1_000_000, ignore_eos=True)
        next(stream)
        self.cluster.server.kill()
        with self.assertRaises(goldfinch.UnavailableError):
            for _ in stream:
                pass
        with self.assertRaises(goldfinch.UnavailableError):
            client.generate(PROMPT, max_tokens=1)
        self.cluster.start_coordinator(pipeline_parallel_size=2)
        self.cluster.wait_ready()
        client = self.cluster.client(retries=100)  # gRPC waits before it dials again
        self.assertEqual(client.generate(PROMPT, max_tokens=10, sampling=GREEDY).text, before)
        self.cluster.wait_idle()


class ManyClientsTest(ClusterTest):
    def test_a_full_queue_refuses_and_forgets(self):
        client = self.serve(max_num_seqs=1, max_queue=1)
        running = client.stream(PROMPT, max_tokens=200_000, ignore_eos=True)
        next(running)
        waiting = threading.Thread(target=lambda: list(client.stream(PROMPT, max_tokens=5, ignore_eos=True)))
        waiting.start()
        self.cluster.wait_info(lambda info: info.requests_waiting == 1, "one waits")
        with self.assertRaises(goldfinch.ResourceExhaustedError):
            client.generate(PROMPT, max_tokens=1)
        running.close()
        waiting.join(SECONDS_MAX)
        self.assertFalse(waiting.is_alive())
        self.cluster.wait_idle()
