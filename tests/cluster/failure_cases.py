"""Losses at random moments: streams go on as if nothing had happened, token by token."""

import random
import signal
import socket
import subprocess
import threading
import time

import goldfinch
from processes import PAGE, SECONDS_MAX, ClusterTest, await_that

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

    def __init__(self, cluster):
        self.tokens = [[[] for _ in range(request.get("n", 1))] for request in REQUESTS]
        self.errors = []
        self.recoveries = 0
        self.longest_pause = 0.0
        self._count = 0
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._run, args=(cluster.client, i)) for i in range(len(REQUESTS))]
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
    def rounds(self, cluster, lose, count=ROUNDS, seed=1):
        """`lose(random)` at a random moment of each round; then what it returned, once the round is over."""
        cluster.await_ready()
        undisturbed = Streams(cluster).join()
        self.assertEqual([len(sample) for request in undisturbed for sample in request], [TOKENS] * 5)
        generator = random.Random(seed)
        pauses, recoveries = [], 0
        for _ in range(count):
            before = cluster.info().group_generation
            streams = Streams(cluster)
            streams.await_tokens(generator.randrange(5 * TOKENS // 2))
            mend = lose(generator)
            tokens = streams.join()
            self.assertFalse(streams.errors)
            self.assertEqual(tokens, undisturbed)
            if mend is not None:
                mend()
            cluster.await_ready()
            self.assertGreater(cluster.info().group_generation, before)
            pauses.append(streams.longest_pause)
            recoveries += streams.recoveries
        cluster.await_nothing_held()
        self.assertGreater(recoveries, count)
        metrics = cluster.metrics()
        generation = next(value for name, value in metrics.items() if name.startswith("goldfinch_group_generation"))
        self.assertEqual(generation, cluster.info().group_generation)
        pauses.sort()
        print(f"longest pause of a stream: median {pauses[len(pauses) // 2]:.2f} s, most {pauses[-1]:.2f} s", flush=True)

    def test_workers_that_are_killed_while_a_spare_stands_by(self):
        cluster = self.start(workers=4, stages=3)

        def lose(generator):
            busy = [stage.worker for stage in cluster.info().groups[0].stages]
            cluster.kill_worker(generator.choice(busy or sorted(cluster.workers)))
            cluster.start_worker()

        self.rounds(cluster, lose)

    def test_workers_that_are_killed_and_not_replaced_until_later(self):
        cluster = self.start(workers=3)

        def lose(generator):
            cluster.kill_worker(generator.choice(sorted(cluster.workers)))
            return cluster.start_worker

        self.rounds(cluster, lose, count=6)

    def test_workers_that_are_stopped(self):
        cluster = self.start(workers=3)

        def lose(generator):
            worker = cluster.workers[generator.choice(sorted(cluster.workers))]
            worker.send(signal.SIGSTOP)
            return lambda: worker.send(signal.SIGCONT)

        self.rounds(cluster, lose)

    def test_connections_that_are_cut(self):
        cluster = self.start(workers=1, stages=3)
        proxies = [Proxy(cluster.ports["cluster_port"]) for _ in range(2)]
        for proxy in proxies:
            self.addCleanup(proxy.close)
            cluster.start_worker(coordinator=f"127.0.0.1:{proxy.port}")

        def lose(generator):
            generator.choice(proxies).cut()

        self.rounds(cluster, lose)

    def test_a_network_that_is_cut(self):
        ports = self.namespace()
        cluster = self.start(workers=0, stages=3, flags=["--host", "0.0.0.0"])
        for _ in range(2):
            cluster.start_worker(flags=["--address", ports["here"]])
        cluster.start_worker(
            coordinator=f"{ports['here']}:{cluster.ports['cluster_port']}",
            prefix=["ip", "netns", "exec", ports["name"]],
            flags=["--address", ports["there"]],
        )

        def lose(_):
            subprocess.run(["ip", "link", "set", ports["link"], "down"], check=True)
            return lambda: subprocess.run(["ip", "link", "set", ports["link"], "up"], check=True)

        self.rounds(cluster, lose, count=3)

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

    def test_without_workers_requests_end_when_the_time_is_out(self):
        cluster = self.start(workers=2, flags=["--recovery-timeout", "0.7"])
        cluster.await_ready()
        streams = Streams(cluster)
        streams.await_tokens(20)
        for name in sorted(cluster.workers):
            cluster.kill_worker(name)
        streams.join()
        self.assertEqual(len(streams.errors), len(REQUESTS))
        for error in streams.errors:
            self.assertIsInstance(error, goldfinch.UnavailableError)
            self.assertIn("--recovery-timeout", str(error))
        with self.assertRaises(goldfinch.UnavailableError):
            cluster.client.generate("x", max_tokens=1)
        # Workers that come bring it back.
        for _ in range(2):
            cluster.start_worker()
        cluster.await_ready()
        self.assertEqual(len(cluster.client.generate("x", max_tokens=3, ignore_eos=True).tokens), 3)

    def test_a_coordinator_that_is_killed_and_comes_back(self):
        cluster = self.start(workers=2)
        cluster.await_ready()
        streams = Streams(cluster)
        streams.await_tokens(20)
        cluster.coordinator.kill()
        streams.join()
        self.assertEqual(len(streams.errors), len(REQUESTS))
        for error in streams.errors:
            self.assertIsInstance(error, goldfinch.UnavailableError)
        with self.assertRaises(goldfinch.UnavailableError):
            cluster.client.generate("x", max_tokens=1)
        for worker in cluster.workers.values():
            self.assertTrue(worker.running())
        cluster.start_coordinator()

        def served():
            try:
                return cluster.ready()
            except goldfinch.UnavailableError:
                return None  # the channel has not come back yet

        await_that(served, "served again")
        self.assertEqual(len(cluster.client.generate("x", max_tokens=3, ignore_eos=True).tokens), 3)

    def test_a_worker_that_is_asked_to_end(self):
        cluster = self.start(workers=3, stages=2)
        cluster.await_ready()
        undisturbed = Streams(cluster).join()
        streams = Streams(cluster)
        streams.await_tokens(50)
        name = cluster.info().groups[0].stages[1].worker
        cluster.workers[name].send(signal.SIGTERM)
        self.assertEqual(cluster.workers[name].wait(), 0)
        self.assertEqual(streams.join(), undisturbed)
        self.assertFalse(streams.errors)
        self.assertIn("it leaves", cluster.coordinator.said())
