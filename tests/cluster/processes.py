"""Real processes on this machine: a coordinator and its workers, started, killed, stopped and asked."""

import ctypes
import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time
import unittest
import urllib.request

import goldfinch

PROGRAM = pathlib.Path(os.environ.get("GOLDFINCH", "bazel-bin/clients/goldfinch")).resolve()
DEMO_MODEL = pathlib.Path("tests/demo_model/model.pth")
PAGE = pathlib.Path("tests/program/king_james.txt").read_text(encoding="ascii")

SECONDS_MAX = 30  # of anything that is waited for
POLL_SECONDS = 0.01

# Steady settings for tests: losses are noticed soon, but not by a busy machine's hiccups.
COORDINATOR_FLAGS = ["--heartbeat-interval", "0.2", "--heartbeat-timeout", "1.5", "--regroup-wait", "0.2"]
COORDINATOR_FLAGS += ["--max-model-len", "16384", "--max-num-seqs", "64"]

PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def _die_with_parent():
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def await_that(condition, what):
    """Waits until the condition is true and returns what it returned."""
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"after {SECONDS_MAX} s: not {what}")
        time.sleep(POLL_SECONDS)


class Process:
    """A run of the program. What it says goes to files."""

    def __init__(self, folder, name, *arguments, prefix=()):
        self.name = name
        self.log = folder / f"{name}.log"
        self.out = folder / f"{name}.out"
        with open(self.log, "ab") as log, open(self.out, "wb") as out:
            self._popen = subprocess.Popen(
                [*prefix, PROGRAM, *map(str, arguments)], stdout=out, stderr=log, preexec_fn=_die_with_parent
            )

    @property
    def pid(self):
        return self._popen.pid

    def send(self, number):
        self._popen.send_signal(number)

    def kill(self):
        """As the machine would that loses power: nothing is said."""
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait()

    def wait(self):
        """The exit code."""
        return self._popen.wait(SECONDS_MAX)

    def running(self):
        return self._popen.poll() is None

    def said(self):
        return self.log.read_text(encoding="utf-8", errors="replace")


class Cluster:
    """A coordinator and workers, to be used in a `with`. Everything it started is killed at the end."""

    def __init__(self, workers=3, model=DEMO_MODEL, flags=(), worker_flags=(), stages=None):
        self._temporary = tempfile.TemporaryDirectory()
        self.folder = pathlib.Path(self._temporary.name)
        self.model = model
        self.stages = stages or max(workers, 1)
        self.flags = list(flags)
        self.worker_flags = list(worker_flags)
        self.workers = {}
        self._started = 0
        self._count = workers
        self.ports = None
        self.coordinator = None
        self.client = None

    def __enter__(self):
        try:
            self.start_coordinator()
            for _ in range(self._count):
                self.start_worker()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.client is not None:
            self.client.close()
        for process in [*self.workers.values(), self.coordinator]:
            if process is not None:
                process.kill()
        self._temporary.cleanup()

    def start_coordinator(self):
        """Again on the same ports, if it has run before."""
        ports = self.ports or {"grpc_port": 0, "cluster_port": 0, "port": 0}
        self.coordinator = Process(
            self.folder, "coordinator", "coordinator", "--model", self.model, "--ready-json",
            "--pipeline-parallel-size", self.stages, "--grpc-port", ports["grpc_port"],
            "--cluster-port", ports["cluster_port"], "--port", ports["port"], *COORDINATOR_FLAGS, *self.flags,
        )  # fmt: skip

        def listening():
            text = self.coordinator.out.read_text(encoding="utf-8")
            if not self.coordinator.running():
                raise AssertionError(f"the coordinator ended: {self.coordinator.said()}")
            return json.loads(text) if text.endswith("\n") else None

        self.ports = await_that(listening, "listening")
        if self.client is None:
            self.client = self.new_client()

    @property
    def address(self):
        return f"127.0.0.1:{self.ports['grpc_port']}"

    def new_client(self, **options):
        return goldfinch.Client(self.address, timeout=SECONDS_MAX, **options)

    def start_worker(self, coordinator=None, prefix=(), flags=()):
        """A new one; its name."""
        self._started += 1
        name = f"worker{self._started}"
        coordinator = coordinator or f"127.0.0.1:{self.ports['cluster_port']}"
        self.workers[name] = Process(
            self.folder, name, "worker", "--coordinator", coordinator, "--name", name, "--threads", 1,
            *self.worker_flags, *flags, prefix=prefix,
        )  # fmt: skip
        return name

    def kill_worker(self, name):
        self.workers.pop(name).kill()

    def info(self):
        return self.client.cluster_info()

    def ready(self, stages=None):
        info = self.info()
        group = info.groups[0]
        return group.state == 3 and len(group.stages) == (stages or self.stages) and info

    def await_ready(self, stages=None):
        return await_that(lambda: self.ready(stages), f"ready: {self.coordinator.said()[-2000:]}")

    def await_nothing_held(self):
        def nothing():
            info = self.info()
            held = [info.requests_running, info.requests_waiting, info.cache_bytes, info.state_bytes]
            for group in info.groups:
                held += [group.sequences, group.steps_in_flight, group.cache_tokens_reserved]
            return not any(held)

        await_that(nothing, f"free of requests: {self.info()}")

    def metrics(self):
        """Samples by name with labels, as the text has them."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['port']}/metrics", timeout=SECONDS_MAX) as page:
            lines = page.read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


class ClusterTest(unittest.TestCase):
    """Shows the logs of a cluster whose test failed."""

    def start(self, *arguments, **options):
        cluster = Cluster(*arguments, **options)
        cluster.__enter__()
        self.addCleanup(cluster.__exit__)
        self.addCleanup(self._show_logs, cluster)
        return cluster

    def _show_logs(self, cluster):
        result = self._outcome.result
        if any(test is self for test, _ in [*result.failures, *result.errors]):
            for path in sorted(cluster.folder.glob("*.log")):
                print(f"---- {path.name}\n{path.read_text(errors='replace')[-3000:]}", flush=True)
