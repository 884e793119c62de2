"""Who may join a cluster, and what strangers at its ports reach: nothing."""

import contextlib
import os
import pathlib
import secrets
import socket
import threading
import unittest.mock

import grpc

from cluster import SECONDS_MAX, ClusterTest, wait_until
from program import DEMO_MODEL, GOLDEN, flags, run

OTHER_MODEL = (GOLDEN / "finch" / "model.pth").resolve()
PROMPT = "In the beginning "
LISTENING = "0A"  # of /proc/net/tcp


class TrustTest(ClusterTest):
    def key_file(self, name, text=None):
        path = self.cluster.folder / name
        path.write_text(text or secrets.token_hex(32))
        return path

    def check_ended(self, worker, *says):
        self.assertEqual(worker.wait(), 1, worker.tail())
        for text in says:
            self.assertIn(text, worker.log.read_text())

    def check_serves(self):
        self.cluster.wait_ready()
        self.assertEqual(len(self.cluster.client().generate(PROMPT, max_tokens=3, ignore_eos=True).tokens), 3)


class KeyTest(TrustTest):
    def register_as_a_stranger(self):
        """What becomes of a stranger's call of Work, who sends an empty Register."""
        with grpc.insecure_channel(f"127.0.0.1:{self.cluster.ports.cluster}") as channel:
            call = channel.stream_stream("/goldfinch.cluster.v1.Cluster/Work")(iter([b"\x0a\x00"]), timeout=SECONDS_MAX)
            with self.assertRaises(grpc.RpcError) as caught:
                list(call)
        return caught.exception

    def test_workers_with_the_key_serve_and_strangers_do_not_join(self):
        key = self.key_file("cluster.key")
        self.cluster.start_coordinator(cluster_key_file=key, pipeline_parallel_size=2)
        error = self.register_as_a_stranger()  # he is the first
        self.assertEqual(error.code(), grpc.StatusCode.UNAUTHENTICATED)
        self.check_ended(
            self.cluster.start_worker("other", cluster_key_file=self.key_file("other.key")), "--cluster-key-file"
        )
        self.check_ended(self.cluster.start_worker("keyless"), "--cluster-key-file")
        for name in ("w0", "w1"):
            self.cluster.start_worker(name, cluster_key_file=key)
        self.check_serves()
        info = self.cluster.info()
        self.assertEqual({stage.worker for stage in info.groups[0].stages}, {"w0", "w1"})
        self.assertEqual(list(info.spare_workers), [])
        self.assertIn("refused a worker at 127.0.0.1:", self.cluster.server.log.read_text())

    def test_a_worker_with_a_key_does_not_trust_a_coordinator_without_it(self):
        self.cluster.start_coordinator()
        worker = self.cluster.start_worker("w0", cluster_key_file=self.key_file("cluster.key"))
        wait_until(lambda: "does not prove that it has the key" in worker.log.read_text(), "the worker says so")
        self.assertIsNone(worker.returncode, "it goes on looking for its coordinator")
        self.assertEqual(list(self.cluster.info().spare_workers), [])

    def test_bad_key_files(self):
        short = self.key_file("short.key", "secret")
        for command in (["coordinator", "--model", DEMO_MODEL], ["worker", "--coordinator", "127.0.0.1:1"]):
            result = run(*command, "--cluster-key-file", short)
            self.assertEqual(result.code, 1, result)
            self.assertIn("short.key: the key has 6 bytes, it must have at least 32", result.stderr)
            self.assertNotIn("secret", result.stderr)


class OpenPortTest(TrustTest):
    def test_a_port_that_strangers_reach_is_refused_with_the_flags_that_mend_it(self):
        ports = {"grpc_port": 0, "metrics_port": -1, "cluster_port": 0}
        result = run("coordinator", *flags(model=DEMO_MODEL, host="0.0.0.0", **ports))
        self.assertEqual(result.code, 2, result)
        for text in ("--host is 0.0.0.0", "--cluster-key-file", "--cluster-host 127.0.0.1", "--insecure-cluster"):
            self.assertIn(text, result.stderr)
        result = run("coordinator", *flags(model=DEMO_MODEL, cluster_host="0.0.0.0", **ports))
        self.assertEqual(result.code, 2, result)

    def test_the_cluster_port_has_an_address_of_its_own(self):
        self.cluster.start_coordinator(host="0.0.0.0", cluster_host="127.0.0.1")
        self.cluster.start_worker("w0")
        self.check_serves()


class ModelTest(TrustTest):
    def test_a_worker_with_another_model_is_refused(self):
        self.cluster.start_coordinator()
        other = self.cluster.start_worker("first", model=OTHER_MODEL)
        self.check_ended(other, "it has another model: fingerprint is", "the cluster's model has")
        self.cluster.start_worker("w0")
        self.check_serves()

    def test_the_model_is_known_before_there_is_a_worker(self):
        self.cluster.start_coordinator()
        wait_until(lambda: self.cluster.client(retries=100).model_info().layers > 0, "the model is known")

    def test_a_file_that_only_the_workers_have_is_named_by_its_fingerprint(self):
        missing = self.cluster.folder / "model.pth"
        ports = {"grpc_port": 0, "metrics_port": -1, "cluster_port": 0}
        result = run("coordinator", *flags(model=missing, **ports))
        self.assertEqual(result.code, 1, result)
        self.assertIn("--model-fingerprint", result.stderr)
        self.cluster.start_coordinator()
        fingerprint = self.cluster.client(retries=100).model_info().fingerprint
        self.cluster.server.kill()
        self.cluster.start_coordinator(model=missing, model_fingerprint=fingerprint, vocab="bytes")
        self.check_ended(self.cluster.start_worker("first", model=OTHER_MODEL), "its fingerprint is")
        self.cluster.start_worker("w0", model=DEMO_MODEL)
        self.check_serves()


class AddressTest(TrustTest):
    def test_a_name_that_does_not_resolve_yet_is_tried_again(self):
        self.cluster.start_coordinator()  # gives the workers' arguments their port
        worker = self.cluster.start_worker("w0", coordinator="no-such-host.invalid:50052")
        wait_until(lambda: "no way to the coordinator yet" in worker.log.read_text(), "the worker says so")
        self.assertIsNone(worker.returncode)
        worker.terminate()
        self.assertEqual(worker.wait(), 0)

    def test_an_address_has_a_port(self):
        for address in ("localhost", "127.0.0.1", "::1", "[::1]", "localhost:", "localhost:0"):
            result = run("worker", "--coordinator", address)
            self.assertEqual(result.code, 2, result)
            self.assertIn(f'"{address}" is not HOST:PORT', result.stderr)

    def test_no_proxy_is_used_on_this_machine(self):
        with unittest.mock.patch.dict(os.environ, {"http_proxy": "http://127.0.0.1:9"}):
            for name in ("no_proxy", "NO_PROXY"):
                os.environ.pop(name, None)
            self.cluster.start_coordinator()
            self.cluster.start_worker("w0")
            self.cluster.wait_info(lambda info: info.groups and info.groups[0].stages, "the worker is a stage")
            self.assertEqual(run("status", "--server", f"127.0.0.1:{self.cluster.ports.grpc}").code, 0)
            result = run("status", "--server", "192.0.2.1:50051", "--deadline", 20)
            self.assertEqual(result.code, 1, result)
            self.assertIn("by the proxy 127.0.0.1:9, which the variable http_proxy names", result.stderr)


class PortScanTest(TrustTest):
    """Somebody connects to every port of the workers, all the time, and says nothing, or anything."""

    def listening_ports(self, worker):
        inodes = set()
        for descriptor in pathlib.Path(f"/proc/{worker.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                target = os.readlink(descriptor)
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
        for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTENING and fields[9] in inodes:
                yield int(fields[1].rpartition(":")[2], 16)

    def scan(self, done):
        held = []
        while not done.is_set():
            for worker in list(self.cluster.workers.values()):
                with contextlib.suppress(OSError):
                    for port in self.listening_ports(worker):
                        held.append(socket.create_connection(("127.0.0.1", port), timeout=1))
                        if self.random.random() < 0.7:
                            held[-1].sendall(self.random.randbytes(self.random.choice([1, 56, 500])))
            for stranger in held[:-20]:
                stranger.close()
            del held[:-20]
        for stranger in held:
            stranger.close()

    def test_a_generation_forms_and_serves(self):
        self.cluster.start_coordinator(pipeline_parallel_size=3)
        done = threading.Event()
        scanner = threading.Thread(target=self.scan, args=(done,))
        scanner.start()
        try:
            self.cluster.start_workers(3)
            self.check_serves()
            self.assertEqual(self.cluster.info().group_generation, 1, self.cluster.logs())
        finally:
            done.set()
            scanner.join()
