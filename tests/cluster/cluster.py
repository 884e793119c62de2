"""Real processes of the program as a cluster: started, awaited, hurt, looked at, and all gone in the end."""

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

SECONDS_MAX = 120  # of anything that is waited for; sanitizers on a busy machine are slow
POLL_SECONDS = 0.02

SERVICE = "goldfinch.v1.Goldfinch"
SERVING = 1  # of grpc.health.v1.HealthCheckResponse

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

Ports = collections.namedtuple("Ports", "grpc cluster http")


def _die_with_parent():
    # A killed test leaves nothing behind.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def wait_until(condition, what, seconds=SECONDS_MAX):
    """Returns what `condition` returned, once that is true."""
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
            # Only of the main thread: the system counts a thread that ends as the death of its children's parent.
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
        return Ports(ports["grpc_port"], ports.get("cluster_port"), ports.get("port"))

    def send(self, number):
        os.killpg(self.pid, number)

    def kill(self):
        """As kill -9; returns when it is gone."""
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
        """Returns the exit code; negative: the signal it died of."""
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
    """The processes of one test. A context manager: in the end all of them are killed."""

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
        """At the ports of the one before, if there was one."""
        ports = {"cluster_port": self.ports.cluster} if self.ports else {"cluster_port": 0}
        self._start_server("coordinator", {**ports, **options})

    def _start_server(self, command, options):
        again = {"grpc_port": self.ports.grpc, "port": self.ports.http} if self.ports else {"grpc_port": 0, "port": 0}
        options = {"model": DEMO_MODEL, "host": "127.0.0.1", "ready_json": True, **again, **options}
        self.server = self._start(command, [command, *flags(**options)])
        self.ports = self.server.read_ports()

    def start_worker(self, name, wrapper=(), **options):
        """`wrapper`: a command that runs the worker, as of another network namespace."""
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
        """Until the health service says so, by its own word: nothing is polled. Of servers without TLS."""
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
        """Until the condition of GetClusterInfo holds; returns the last answer."""
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
        """Until all groups are ready, one of them of that generation or a later one."""
        return self.wait_info(
            lambda info: info.group_generation >= least
            and info.groups
            and all(group.state == pb.READY for group in info.groups),
            f"generation {least} is ready",
            seconds,
        )

    def wait_idle(self, seconds=SECONDS_MAX):
        """Until no request, sequence, page or step is left: what a finished test has to reach."""
        return self.wait_info(lambda info: not held_resources(info), "everything is free", seconds)

    def metrics(self):
        """{'name{labels}': value}."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports.http}/metrics", timeout=SECONDS_MAX) as page:
            return parse_metrics(page.read().decode())

    def logs(self):
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)


def held_resources(info):
    """What requests hold, by name; empty if nothing."""
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
    """Over all labels."""
    pattern = re.compile(re.escape(name) + r"(\{.*\})?\Z")
    return sum(value for key, value in metrics.items() if pattern.match(key))


class ClusterTest(unittest.TestCase):
    """A cluster a test, `self.cluster`. `self.random` repeats by its seed, which $SEED sets."""

    def setUp(self):
        seed = int(os.environ.get("SEED", "1"))
        self.random = random.Random(f"{self.id()} {seed}")
        self.cluster = Cluster()
        self.addCleanup(self.cluster.close)

    def serve(self, **options):
        """An embedded server of three stages, ready."""
        self.cluster.start_serve(**{"pipeline_parallel_size": 3, **options})
        self.cluster.wait_ready()
        return self.cluster.client()

    def form(self, workers=3, **options):
        """A coordinator with so many workers and stages, ready."""
        self.cluster.start_coordinator(**{"pipeline_parallel_size": workers, **options})
        self.cluster.start_workers(workers)
        self.cluster.wait_ready()
        return self.cluster.client()
