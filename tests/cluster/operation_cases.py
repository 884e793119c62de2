"""What those who run a server see of it: probes and metrics, and what it does when its model's file is changed."""

import contextlib
import re
import shutil
import signal
import socket
import string
import threading
import time
import urllib.error
import urllib.request

import grpc

import certificates
import goldfinch
from cluster import SECONDS_MAX, SERVICE, SERVING, ClusterTest, metric_sum, wait_until
from goldfinch import GREEDY
from program import DEMO_CONFIG, DEMO_MODEL

PROMPT = "And he said unto them, "
NOT_SERVING = 2
WITHOUT_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class OperationTest(ClusterTest):
    def code(self, path, host="127.0.0.1"):
        """The HTTP status of a path on the metrics port."""
        try:
            return WITHOUT_PROXY.open(f"http://{host}:{self.cluster.ports.metrics}{path}", timeout=SECONDS_MAX).status
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    def codes(self):
        return [self.code(f"/{name}") for name in ("livez", "startupz", "readyz")]

    def wait_ready(self):
        """As a probe does, which cannot speak TLS."""
        wait_until(lambda: self.code("/readyz") == 200, "ready")


class ProbeTest(OperationTest):
    def health(self, service):
        with grpc.insecure_channel(self.cluster.address) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=lambda name: b"\x0a" + bytes([len(name)]) + name.encode(),
                response_deserializer=lambda message: message[1],
            )
            return check(service, timeout=SECONDS_MAX)

    def check_health(self, status):
        for service in ("", SERVICE):
            self.assertEqual(self.health(service), status, service)

    def test_a_server_with_tls_and_keys(self):
        certs = certificates.Certificates()
        self.addCleanup(certs.close)
        keys = self.cluster.folder / "keys"
        keys.write_text("a-key-of-the-server\n")
        self.cluster.start_serve(
            api_key_file=keys,
            grpc_server_cert=certs.server_cert,
            grpc_server_key=certs.server_key,
            grpc_root_cert=certs.root_cert,
        )
        self.wait_ready()
        self.assertEqual(self.codes(), [200, 200, 200])
        self.assertEqual(self.code("/metrics"), 200)
        self.assertEqual(self.code("/health"), 404)

    def test_they_follow_the_groups(self):
        self.cluster.start_coordinator()
        self.assertEqual(self.codes(), [200, 503, 503])
        self.check_health(NOT_SERVING)
        self.cluster.start_worker("w0")
        self.cluster.wait_ready()
        self.assertEqual(self.codes(), [200, 200, 200])
        self.check_health(SERVING)
        self.cluster.workers["w0"].kill()
        wait_until(lambda: self.codes() == [200, 200, 503], "not ready")
        wait_until(lambda: self.health("") == NOT_SERVING, "NOT_SERVING")
        self.check_health(NOT_SERVING)

    def test_not_ready_while_draining(self):
        client = self.serve()
        stream = client.stream(PROMPT, max_tokens=1_000_000, ignore_eos=True)
        next(stream)
        self.cluster.server.terminate()
        wait_until(lambda: self.codes() == [200, 200, 503], "draining")
        self.assertTrue(next(stream).tokens)
        stream.close()
        self.assertEqual(self.cluster.server.wait(), 0)

    def test_metrics_listen_on_loopback_unless_told(self):
        self.cluster.start_serve(host="0.0.0.0")
        log = self.cluster.server.log.read_text()
        self.assertIn(f"metrics and probes at http://127.0.0.1:{self.cluster.ports.metrics}/metrics", log)
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", self.cluster.ports.metrics), timeout=SECONDS_MAX)

    def test_metrics_listen_where_told(self):
        self.cluster.start_serve(metrics_host="127.0.0.2")
        self.assertEqual(self.code("/livez", host="127.0.0.2"), 200)
        with self.assertRaises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", self.cluster.ports.metrics), timeout=SECONDS_MAX)

    def test_idle_connections_do_not_block_a_scrape(self):
        self.serve()
        address = ("127.0.0.1", self.cluster.ports.metrics)
        connections = [socket.create_connection(address, timeout=SECONDS_MAX) for _ in range(20)]
        for connection in connections[::2]:
            connection.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        self.assertEqual(metric_sum(self.cluster.metrics(), "goldfinch_groups_ready"), 1)
        for connection in connections:
            connection.close()


class DeadlineTest(ClusterTest):
    """What a server on a real machine refuses at once. The figures are shown, as they depend on the machine."""

    REFUSAL = r"the first token would take about ([0-9.e+]+) s: .*; the deadline is in "

    def refusal(self, client, prompt, timeout):
        """The seconds that the server names when it refuses the request."""
        for _ in range(20):
            with self.assertRaises(goldfinch.DeadlineExceededError) as caught:
                client.generate(prompt, max_tokens=1, sampling=GREEDY, timeout=timeout)
            named = re.search(self.REFUSAL, str(caught.exception))
            if named:
                return float(named.group(1))
            # On a busy machine, the client may give up before the answer comes.
        self.fail(f"not refused by the server within {timeout} s: {caught.exception}")

    def test_a_long_prompt(self):
        client = self.serve()
        prompt = "".join(self.random.choices(string.ascii_lowercase + " ", k=60_000))
        seconds = []
        for timeout in (None, SECONDS_MAX):  # the second time, Steps have been measured, the end of a long prompt too
            start = time.monotonic()
            client.generate(prompt, max_tokens=1, sampling=GREEDY, timeout=timeout)
            seconds.append(time.monotonic() - start)
        estimate = self.refusal(client, prompt, timeout=min(seconds) / 10)
        print(f"60,000 tokens took {seconds[0]:.2f} and {seconds[1]:.2f} s, estimated {estimate:.2f} s")

    def test_all_slots_are_taken(self):
        client = self.serve(max_num_seqs=2)
        streams = [client.stream(PROMPT, max_tokens=1_000_000, ignore_eos=True) for _ in range(2)]
        counts, times = [0, 0], []
        lock, enough = threading.Lock(), threading.Event()

        def read(number):
            with contextlib.suppress(goldfinch.GoldfinchError):
                for piece in streams[number]:
                    with lock:
                        counts[number] += len(piece.tokens)
                        if min(counts) >= 1000 and len(times) == 0:
                            times.append(time.monotonic())
                        if min(counts) >= 5000 and len(times) == 1:
                            times.append(time.monotonic())
                            enough.set()

        threads = [threading.Thread(target=read, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        try:
            self.assertTrue(enough.wait(SECONDS_MAX))
            # Both are expected to go on for a quarter of what they have got.
            rest = (times[1] - times[0]) * 1250 / 4000
            estimate = self.refusal(client, PROMPT, timeout=rest / 4)
            print(f"two streams were expected to go on for {rest:.2f} s, the estimate was {estimate:.2f} s")
        finally:
            for stream in streams:
                stream.close()
            for thread in threads:
                thread.join()


class ModelFileTest(OperationTest):
    """The file of the model is changed in place. Whatever a client was told to be whole was right."""

    def copy_of_the_model(self, name):
        folder = self.cluster.folder / name
        folder.mkdir()
        shutil.copy(DEMO_CONFIG, folder)
        return shutil.copy(DEMO_MODEL, folder)

    def overwrite(self, model):
        """Zeros in place, as a copy that goes wrong leaves them; the size stays."""
        with open(model, "r+b") as file:
            file.write(bytes(DEMO_MODEL.stat().st_size))

    def ask_until_it_ends(self, client, expected):
        """Answers that come with OK are the expected one."""
        while True:
            try:
                answer = client.generate(PROMPT, max_tokens=20, sampling=GREEDY)
            except goldfinch.GoldfinchError:
                return
            self.assertEqual(answer.text, expected)

    def test_overwritten(self):
        model = self.copy_of_the_model("model")
        client = self.serve(model=model)
        expected = client.generate(PROMPT, max_tokens=20, sampling=GREEDY).text
        self.assertTrue(expected)
        self.overwrite(model)
        self.ask_until_it_ends(client, expected)
        self.assertEqual(self.cluster.server.wait(), 1)
        log = self.cluster.server.log.read_text()
        self.assertRegex(log, f"error {model}: was changed while it was in use: it was written to")

    def test_overwritten_while_nobody_asks(self):
        model = self.copy_of_the_model("model")
        self.serve(model=model)
        self.overwrite(model)
        self.assertEqual(self.cluster.server.wait(), 1)
        self.assertIn("was changed while it was in use", self.cluster.server.log.read_text())

    def test_cut_short(self):
        model = self.copy_of_the_model("model")
        client = self.serve(model=model)
        expected = client.generate(PROMPT, max_tokens=20, sampling=GREEDY).text
        with open(model, "r+b") as file:
            file.truncate(4096)
        self.ask_until_it_ends(client, expected)
        self.assertIn(self.cluster.server.wait(), (1, -signal.SIGBUS))
        log = self.cluster.server.log.read_text()
        self.assertRegex(log, f"{model}: (cannot be read at byte|was changed while it was in use)")

    def test_the_group_goes_on_elsewhere(self):
        models = {name: self.copy_of_the_model(name) for name in ("w0", "w1")}
        self.cluster.start_coordinator()
        for name, model in models.items():
            self.cluster.start_worker(name, model=model)
            self.cluster.wait_ready()
        self.cluster.wait_info(lambda info: len(info.spare_workers) == 1, "a spare")
        seated = self.cluster.info().groups[0].stages[0].worker
        client = self.cluster.client()
        options = {"max_tokens": 600, "ignore_eos": True, "sampling": GREEDY}
        expected = client.generate(PROMPT, **options).text
        stream = client.stream(PROMPT, **options)
        text = next(stream).text
        self.overwrite(models[seated])
        text += "".join(piece.text for piece in stream)
        self.assertEqual(text, expected)
        self.assertEqual(self.cluster.workers[seated].wait(), 1)
        self.cluster.wait_info(lambda info: [stage.worker for stage in info.groups[0].stages] != [seated], "the other")
