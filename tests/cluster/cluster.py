"""Clusters of real processes of the program: starts them, waits for them, kills or freezes them, reads their state."""

import collections
import contextlib
import ctypes
import json
import os
import pathlib
import random
import re
import select
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.request

import grpc

import goldfinch
from goldfinch import generate_pb2 as pb
from program import DEMO_MODEL, PROGRAM, flags

SECONDS_MAX = 120  # the longest wait for anything; sanitizers on a busy machine are slow
POLL_SECONDS = 0.02

SERVICE = "goldfinch.v1.Goldfinch"
SERVING = 1  # a value of grpc.health.v1.HealthCheckResponse.ServingStatus

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

Ports = collections.namedtuple("Ports", "grpc cluster metrics")


def _die_with_parent():
    # A killed test leaves nothing behind.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def wait_until(condition, what, seconds=SECONDS_MAX):
    """Waits until `condition` returns something true, and returns that."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not after {seconds} s")
        time.sleep(POLL_SECONDS)


class Process:
    """One running command of the program. Its log is in `log`."""

    def __init__(self, name, arguments, folder, wrapper=()):
        self.name = name
        self.log = folder / f"{name}.log"
        with open(self.log, "ab") as log:
            # Only from the main thread: when a thread ends, the system takes it for the death of its children's parent.
            self._process = subprocess.Popen(
                [*wrapper, PROGRAM, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    @property
    def pid(self):
        return self._process.pid

    @property
    def returncode(self):
        """None while it runs."""
        return self._process.poll()

    def read_ports(self):
        """Waits for the line of --ready-json."""
        ready, _, _ = select.select([self._process.stdout], [], [], SECONDS_MAX)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise RuntimeError(f"{self.name} does not listen, exit code {self.returncode}:\n{self.tail()}")
        ports = json.loads(line)
        return Ports(ports["grpc_port"], ports.get("cluster_port"), ports.get("metrics_port"))

    def send(self, number):
        os.killpg(self.pid, number)

    def kill(self):
        """Kills the process as kill -9 does, and waits until it is gone."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.send(signal.SIGKILL)
        self._process.wait(SECONDS_MAX)

    def freeze(self):
        self.send(signal.SIGSTOP)

    def thaw(self):
        self.send(signal.SIGCONT)

    def terminate(self):
        self.send(signal.SIGTERM)

    def wait(self, seconds=SECONDS_MAX):
        """Returns the exit code, or the negative number of the signal that ended the process."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.name} runs on:\n{self.tail()}") from None

    def close(self):
        self.kill()
        self._process.stdout.close()

    def tail(self, lines=30):
        return "\n".join(self.log.read_text(errors="backslashreplace").splitlines()[-lines:])


class Cluster:
    """The processes of one test. A context manager, which kills all of them at its end."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(dir=os.environ.get("TEST_TMPDIR"))
        self.folder = pathlib.Path(self._folder.name)
        self._stack = contextlib.ExitStack()
        self._stack.callback(self._folder.cleanup)
        self.server = None  # the process that serves: coordinator or serve
        self.ports = None
        self.workers = {}
        self._connection = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._stack.close()

    # ---- Processes. Keyword arguments are flags, as program.flags() writes them. ----

    def start_serve(self, **options):
        """An embedded server."""
        self._start_server("serve", {"threads": 1, **options})

    def start_coordinator(self, **options):
        """Uses the ports of the coordinator before it, if there was one."""
        ports = {"cluster_port": self.ports.cluster} if self.ports else {"cluster_port": 0}
        self._start_server("coordinator", {**ports, **options})

    def _start_server(self, command, options):
        ports = {"grpc_port": 0, "metrics_port": 0}
        if self.ports:
            ports = {"grpc_port": self.ports.grpc, "metrics_port": self.ports.metrics}
        options = {"model": DEMO_MODEL, "host": "127.0.0.1", "ready_json": True, **ports, **options}
        self.server = self._start(command, [command, *flags(**options)])
        self.ports = self.server.read_ports()

    def start_worker(self, name, wrapper=(), **options):
        """`wrapper`: a command that runs the worker, for example in another network namespace."""
        options = {"coordinator": f"127.0.0.1:{self.ports.cluster}", "name": name, "threads": 1, **options}
        self.workers[name] = self._start(name, ["worker", *flags(**options)], wrapper)
        return self.workers[name]

    def start_workers(self, count, **options):
        for number in range(count):
            self.start_worker(f"w{number}", **options)

    def _start(self, name, arguments, wrapper=()):
        process = Process(name, arguments, self.folder, wrapper)
        self._stack.callback(process.close)
        return process

    # ---- Looking ----

    @property
    def address(self):
        return f"localhost:{self.ports.grpc}"

    def connect_with(self, **options):
        """The key and certificates of clients that are made from now on."""
        self._connection = options

    def client(self, **options):
        client = goldfinch.Client(self.address, **{"timeout": SECONDS_MAX, **self._connection, **options})
        self._stack.callback(client.close)
        return client

    def async_client(self, **options):
        """The caller closes it."""
        return goldfinch.AsyncClient(self.address, **{"timeout": SECONDS_MAX, **self._connection, **options})

    def wait_ready(self, seconds=SECONDS_MAX):
        """Waits until the health service reports SERVING. It watches rather than polls. For servers without TLS."""
        with grpc.insecure_channel(self.address) as channel:
            watch = channel.unary_stream(
                "/grpc.health.v1.Health/Watch",
                request_serializer=lambda name: b"\x0a" + bytes([len(name)]) + name.encode(),
                response_deserializer=lambda message: message[1] if message else 0,
            )
            try:
                for status in watch(SERVICE, timeout=seconds, wait_for_ready=True):
                    if status == SERVING:
                        return
            except grpc.RpcError as error:
                raise TimeoutError(f"not ready: {error.code()}\n{self.logs()}") from None
        raise RuntimeError(f"the health service ended\n{self.logs()}")

    def info(self):
        return self.client().cluster_info()

    def wait_info(self, condition, what, seconds=SECONDS_MAX):
        """Waits until the condition holds for GetClusterInfo's answer, and returns that answer."""
        client = self.client()
        seen = []

        def look():
            seen[:] = [client.cluster_info()]
            return condition(seen[0])

        try:
            wait_until(look, what, seconds)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{seen[0]}\n{self.logs()}") from None
        return seen[0]

    def wait_generation(self, least, seconds=SECONDS_MAX):
        """Waits until all groups are ready, and at least one is in that generation or a later one."""
        return self.wait_info(
            lambda info: info.group_generation >= least
            and info.groups
            and all(group.state == pb.READY for group in info.groups),
            f"generation {least} is ready",
            seconds,
        )

    def wait_idle(self, seconds=SECONDS_MAX):
        """Waits until no request, sequence, page or step is left, as must be so after every test."""
        return self.wait_info(lambda info: not held_resources(info), "everything is free", seconds)

    def metrics(self):
        """{'name{labels}': value}."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports.metrics}/metrics", timeout=SECONDS_MAX) as page:
            return parse_metrics(page.read().decode())

    def logs(self):
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)


def held_resources(info):
    """Returns what requests hold, by name; empty if they hold nothing."""
    counts = {
        "requests_running": info.requests_running,
        "requests_waiting": info.requests_waiting,
        "cache_bytes": info.cache_bytes,
        "state_bytes": info.state_bytes,
    }
    for group in info.groups:
        counts[f"sequences of replica {group.replica}"] = group.sequences
        counts[f"cache_tokens_reserved of replica {group.replica}"] = group.cache_tokens_reserved
        counts[f"steps_in_flight of replica {group.replica}"] = group.steps_in_flight
    return {name: count for name, count in counts.items() if count}


def parse_metrics(text):
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def metric_sum(metrics, name):
    """Returns the sum over all labels."""
    pattern = re.compile(re.escape(name) + r"(\{.*\})?\Z")
    return sum(value for key, value in metrics.items() if pattern.match(key))


class ClusterTest(unittest.TestCase):
    """Gives each test a cluster, `self.cluster`, and `self.random`, whose seed $SEED sets."""

    def setUp(self):
        seed = int(os.environ.get("SEED", "1"))
        self.random = random.Random(f"{self.id()} {seed}")
        self.cluster = Cluster()
        self.addCleanup(self.cluster.close)

    def serve(self, **options):
        """Starts an embedded server with three stages, and waits until it is ready."""
        self.cluster.start_serve(**{"pipeline_parallel_size": 3, **options})
        self.cluster.wait_ready()
        return self.cluster.client()

    def form(self, workers=3, **options):
        """Starts a coordinator with that many workers and stages, and waits until it is ready."""
        self.cluster.start_coordinator(**{"pipeline_parallel_size": workers, **options})
        self.cluster.start_workers(workers)
        self.cluster.wait_ready()
        return self.cluster.client()
