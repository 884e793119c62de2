"""Losses at random moments: streams go on as if nothing had happened, token by token."""

import os
import secrets
import socket
import subprocess
import threading
import time

import goldfinch
from cluster import SECONDS_MAX, ClusterTest, metric_sum
from program import PAGE

ROUNDS = 20
TOKENS = 120

# What runs in every round: greedy, sampled, and three samples of one prompt.
REQUESTS = [
    {"prompt": PAGE[:700], "sampling": goldfinch.GREEDY},
    {"prompt": PAGE[100:400], "seed": 5},
    {"prompt": PAGE[:120], "seed": 6, "n": 3},
]


class Streams:
    """All REQUESTS at once; counts the tokens that have come."""

    def __init__(self, client):
        self.tokens = [[[] for _ in range(request.get("n", 1))] for request in REQUESTS]
        self.errors = []
        self.recoveries = 0
        self.longest_pause = 0.0
        self._count = 0
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._run, args=(client, i)) for i in range(len(REQUESTS))]
        for thread in self._threads:
            thread.start()

    def _run(self, client, index):
        try:
            last = None
            for piece in client.stream(**REQUESTS[index], max_tokens=TOKENS, ignore_eos=True):
                self.tokens[index][piece.index] += [token.id for token in piece.tokens]
                now = time.monotonic()
                with self._changed:
                    self.longest_pause = max(self.longest_pause, now - (last or now))
                    self._count += len(piece.tokens)
                    self.recoveries += piece.usage.recoveries if piece.usage else 0
                    self._changed.notify_all()
                last = now
        except Exception as error:  # pylint: disable=broad-except
            with self._changed:
                self.errors.append(error)
                self._changed.notify_all()

    def await_tokens(self, count):
        with self._changed:
            self._changed.wait_for(lambda: self._count >= count or self.errors, SECONDS_MAX)

    def join(self):
        for thread in self._threads:
            thread.join(SECONDS_MAX)
        return self.tokens


class Endless:
    """A stream that goes on until it is told to stop; keeps its tokens."""

    def __init__(self, client, **request):
        self.request = request
        self.tokens = []
        self.error = None
        self._stop = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, args=(client,))
        self._thread.start()

    def _run(self, client):
        try:
            stream = client.stream(**self.request, max_tokens=15_000, ignore_eos=True)
            for piece in stream:
                with self._changed:
                    self.tokens += [token.id for token in piece.tokens]
                    self._changed.notify_all()
                    if self._stop:
                        break
            stream.close()
        except Exception as error:  # pylint: disable=broad-except
            with self._changed:
                self.error = error
                self._changed.notify_all()

    def await_more(self, count):
        with self._changed:
            wanted = len(self.tokens) + count
            self._changed.wait_for(lambda: len(self.tokens) >= wanted or self.error, SECONDS_MAX)

    def stop(self):
        self._stop = True
        self._thread.join(SECONDS_MAX)
        return self.tokens


class Proxy:
    """A way to the coordinator that can be cut: both ends see their connection reset."""

    def __init__(self, port):
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._sockets = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._sockets += [near, far]
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    @staticmethod
    def _copy(source, target):
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
        except OSError:
            pass
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self):
        with self._lock:
            sockets, self._sockets = self._sockets, []
        for one in sockets:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            one.close()

    def close(self):
        self._listener.close()
        self.cut()


class FailureTest(ClusterTest):
    def begin(self, workers=3, stages=3, **options):
        """A coordinator that notices losses soon, but not a busy machine's hiccups, and workers that are stages."""
        options = {"heartbeat_interval": 0.2, "heartbeat_timeout": 1.5, "regroup_wait": 0.2, **options}
        self.cluster.start_coordinator(pipeline_parallel_size=stages, max_model_len=16384, **options)
        self.cluster.start_workers(workers)
        if workers >= stages:
            self.cluster.wait_ready()
        self.client = self.cluster.client()

    def wait_full(self, stages=3):
        """Until a group of all stages is ready."""
        return self.cluster.wait_info(
            lambda info: info.groups[0].state == 3 and len(info.groups[0].stages) == stages, f"{stages} stages ready"
        )

    def rounds(self, lose, count=ROUNDS):
        """`lose()` at a random moment of each round; then what it returned, once the round is over."""
        self.wait_full()
        undisturbed = Streams(self.client).join()
        self.assertEqual([len(sample) for request in undisturbed for sample in request], [TOKENS] * 5)
        pauses, recoveries = [], 0
        for _ in range(count):
            before = self.cluster.info().group_generation
            streams = Streams(self.client)
            streams.await_tokens(self.random.randrange(5 * TOKENS // 2))
            mend = lose()
            tokens = streams.join()
            self.assertFalse(streams.errors, self.cluster.logs())
            self.assertEqual(tokens, undisturbed)
            if mend is not None:
                mend()
            self.assertGreater(self.wait_full().group_generation, before)
            pauses.append(streams.longest_pause)
            recoveries += streams.recoveries
        info = self.cluster.wait_idle()
        self.assertGreater(recoveries, count)
        self.assertEqual(metric_sum(self.cluster.metrics(), "goldfinch_group_generation"), info.group_generation)
        pauses.sort()
        print(f"longest pause of a stream: median {pauses[count // 2]:.2f} s, most {pauses[-1]:.2f} s", flush=True)

    def test_workers_that_are_killed_while_a_spare_stands_by(self):
        self.begin(workers=4)
        names = iter(range(4, 100))

        def lose():
            # Kill a worker that is a stage, or any worker if the group is just forming.
            alive = {name for name, worker in self.cluster.workers.items() if worker.returncode is None}
            busy = {stage.worker for stage in self.cluster.info().groups[0].stages} & alive
            self.cluster.workers[self.random.choice(sorted(busy or alive))].kill()
            self.cluster.start_worker(f"w{next(names)}")

        self.rounds(lose)

    def test_workers_that_are_killed_and_replaced_later(self):
        self.begin()
        names = iter(range(3, 100))

        def lose():
            alive = sorted(name for name, worker in self.cluster.workers.items() if worker.returncode is None)
            self.cluster.workers[self.random.choice(alive)].kill()
            return lambda: self.cluster.start_worker(f"w{next(names)}")

        self.rounds(lose, count=6)

    def test_workers_that_are_stopped(self):
        self.begin()

        def lose():
            worker = self.cluster.workers[self.random.choice(sorted(self.cluster.workers))]
            worker.freeze()
            return worker.thaw

        self.rounds(lose)

    def test_connections_that_are_cut(self):
        self.begin(workers=1)
        proxies = [Proxy(self.cluster.ports.cluster) for _ in range(2)]
        for number, proxy in enumerate(proxies):
            self.addCleanup(proxy.close)
            self.cluster.start_worker(f"p{number}", coordinator=f"127.0.0.1:{proxy.port}")
        self.rounds(lambda: self.random.choice(proxies).cut())

    def test_a_network_that_is_cut(self):
        network = self.namespace()
        key = self.cluster.folder / "cluster.key"
        key.write_text(secrets.token_hex(32))
        self.begin(workers=0, host="0.0.0.0", cluster_key_file=key)
        for name in ("a", "b"):
            self.cluster.start_worker(name, address=network["here"], cluster_key_file=key)
        self.cluster.start_worker(
            "c",
            wrapper=["ip", "netns", "exec", network["name"]],
            coordinator=f"{network['here']}:{self.cluster.ports.cluster}",
            address=network["there"],
            cluster_key_file=key,
        )

        def lose():
            subprocess.run(["ip", "link", "set", network["link"], "down"], check=True)
            return lambda: subprocess.run(["ip", "link", "set", network["link"], "up"], check=True)

        self.rounds(lose, count=3)

    def namespace(self):
        """A network of its own, and a link to it; skips where the machine does not allow it."""
        tag = f"gf{time.monotonic_ns() % 100000}"
        here, there = "198.18.37.1", "198.18.37.2"
        commands = [
            f"ip netns add {tag}",
            f"ip link add {tag}a type veth peer name {tag}b netns {tag}",
            f"ip addr add {here}/30 dev {tag}a",
            f"ip link set {tag}a up",
            f"ip -n {tag} addr add {there}/30 dev {tag}b",
            f"ip -n {tag} link set {tag}b up",
            f"ip -n {tag} link set lo up",
        ]
        self.addCleanup(lambda: subprocess.run(["ip", "netns", "del", tag], capture_output=True, check=False))
        for command in commands:
            try:
                done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
            except FileNotFoundError:
                self.skipTest("there is no program ip")
            if done.returncode != 0:
                self.skipTest(f"{command}: {done.stderr.strip()}")
        return {"name": tag, "link": f"{tag}a", "here": here, "there": there}

    def test_a_busy_group_grows_back(self):
        self.begin(regrow_after=0.3)
        requests = [{"prompt": PAGE[:700], "sampling": goldfinch.GREEDY}, {"prompt": PAGE[100:400], "seed": 5}]
        streams = [Endless(self.client, **request) for request in requests]
        for stream in streams:
            stream.await_more(20)
        self.cluster.workers["w1"].kill()
        self.wait_full(stages=2)
        self.cluster.start_worker("w3")
        info = self.wait_full(stages=3)
        self.assertEqual(info.requests_running + info.requests_waiting, 2)
        for stream in streams:
            stream.await_more(20)
        tokens = [stream.stop() for stream in streams]
        self.assertEqual([stream.error for stream in streams], [None, None], self.cluster.logs())
        self.assertIn("takes no more steps, to grow from 2 to 3 stages", self.cluster.server.log.read_text())
        for request, got in zip(requests, tokens, strict=True):
            undisturbed = self.client.generate(**request, max_tokens=len(got), ignore_eos=True)
            self.assertEqual([token.id for token in undisturbed.tokens], got)

    def test_workers_of_one_host_share_it(self):
        self.begin()
        stages = self.wait_full().groups[0].stages
        shares = [stage.memory_bytes for stage in stages]
        self.assertEqual(shares[1:], shares[:-1])
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        self.assertLessEqual(sum(shares), 0.9 * memory)
        self.assertEqual(len(self.client.generate("x", max_tokens=3, ignore_eos=True).tokens), 3)

    def test_a_worker_beside_the_coordinator_is_reached_from_elsewhere(self):
        network = self.namespace()
        key = self.cluster.folder / "cluster.key"
        key.write_text(secrets.token_hex(32))
        self.begin(workers=0, stages=2, host="0.0.0.0", cluster_key_file=key)
        self.cluster.start_worker(
            "a",
            wrapper=["ip", "netns", "exec", network["name"]],
            coordinator=f"{network['here']}:{self.cluster.ports.cluster}",
            cluster_key_file=key,
        )
        # The second stage, to which the first connects; it reaches the coordinator by 127.0.0.1.
        self.cluster.start_worker("b", cluster_key_file=key)
        self.wait_full(stages=2)
        self.assertEqual(len(self.client.generate("x", max_tokens=3, ignore_eos=True).tokens), 3)
        self.assertIn(f"listens on its route to {network['there']}", self.cluster.server.log.read_text())

    def test_without_workers_requests_end_when_the_time_is_out(self):
        self.begin(workers=2, stages=2, recovery_timeout=0.7)
        streams = Streams(self.client)
        streams.await_tokens(20)
        for worker in self.cluster.workers.values():
            worker.kill()
        streams.join()
        self.assertEqual(len(streams.errors), len(REQUESTS))
        for error in streams.errors:
            self.assertIsInstance(error, goldfinch.UnavailableError)
            self.assertIn("recovery timeout", str(error))
        with self.assertRaises(goldfinch.UnavailableError):
            self.client.generate("x", max_tokens=1)
        # Workers that come bring it back.
        for name in ("new0", "new1"):
            self.cluster.start_worker(name)
        self.wait_full(stages=2)
        self.assertEqual(len(self.client.generate("x", max_tokens=3, ignore_eos=True).tokens), 3)

    def test_a_coordinator_that_is_killed_and_comes_back(self):
        self.begin(workers=2, stages=2)
        streams = Streams(self.client)
        streams.await_tokens(20)
        self.cluster.server.kill()
        streams.join()
        self.assertEqual(len(streams.errors), len(REQUESTS))
        for error in streams.errors:
            self.assertIsInstance(error, goldfinch.UnavailableError)
        with self.assertRaises(goldfinch.UnavailableError):
            self.client.generate("x", max_tokens=1)
        for worker in self.cluster.workers.values():
            self.assertIsNone(worker.returncode)
        self.cluster.start_coordinator(pipeline_parallel_size=2)
        self.cluster.wait_ready()
        self.assertEqual(len(self.cluster.client(retries=10).generate("x", max_tokens=3, ignore_eos=True).tokens), 3)

    def test_a_worker_that_is_asked_to_end(self):
        self.begin(workers=3, stages=2)
        undisturbed = Streams(self.client).join()
        streams = Streams(self.client)
        streams.await_tokens(50)
        worker = self.cluster.workers[self.cluster.info().groups[0].stages[1].worker]
        worker.terminate()
        self.assertEqual(worker.wait(), 0)
        self.assertEqual(streams.join(), undisturbed)
        self.assertFalse(streams.errors)
        self.assertIn("it leaves", self.cluster.server.tail())
