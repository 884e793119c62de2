#!/usr/bin/env python3
"""Measures what hostile clients can do to an honest one: hostile_load.py [--seconds 600] [--json]

A server of the demo model with API keys first serves one honest client alone, then the same client beside attackers of
every kind that this file knows. It prints the honest client's time to first token in both, what failed, and how the
server's memory, descriptors and threads went. Run it as run_cases.py says. It ends with exit code 1 if an honest
request failed or had a wrong answer; the times are for people to judge.

Attackers come from 127.0.0.9, since limits are by address. Where there are two processors or more, the attackers get
the last one and everything else the others, in the quiet time too: in real life they do not compute on the server's
processors.
"""

import argparse
import contextlib
import json
import os
import pathlib
import random
import socket
import statistics
import subprocess
import sys
import threading
import time

FOLDER = pathlib.Path(__file__).resolve().parent
sys.path.insert(1, str(FOLDER))
sys.path.insert(1, str(FOLDER.parent / "program"))

import grpc  # noqa: E402

import cluster  # noqa: E402
import goldfinch  # noqa: E402

ATTACKER = "127.0.0.9"
KEYS = "keys:\n- {name: honest, key: the-honest-api-key}\n- {name: hog, key: the-hogging-api-key}\n"
PROMPT = "In the beginning God created the heaven and the earth. " * 4
GREEDY = goldfinch.Sampling(temperature=0)
GENERATE = "/goldfinch.v1.Goldfinch/Generate"
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, CONTINUATION = 0, 1, 3, 4, 9
END_STREAM, END_HEADERS = 1, 4


def frame(kind, flags, stream, payload=b""):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def headers(method, key=None):
    """A header block of literals that no table remembers."""
    fields = {":method": "POST", ":scheme": "http", ":path": method, ":authority": "a", "te": "trailers"}
    fields["content-type"] = "application/grpc"
    if key:
        fields["authorization"] = f"Bearer {key}"
    return b"".join(
        b"\x10" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )


def connect(port, preface=True):
    connection = socket.create_connection(("127.0.0.1", port), 10, source_address=(ATTACKER, 0))
    if preface:
        connection.sendall(PREFACE + frame(SETTINGS, 0, 0))
    return connection


# ---- Attacks: each is called again and again until the time is over ----


def header_blocks(ports):
    """Endless header blocks."""
    with connect(ports["grpc"]) as connection:
        connection.sendall(frame(HEADERS, 0, 1, headers(GENERATE)))
        while True:
            connection.sendall(frame(CONTINUATION, 0, 1, b"\x10\x04aaaa\x7f\x00" + b"x" * 127))


def resets(ports):
    """Calls that are reset at once."""
    block = headers(GENERATE)
    with connect(ports["grpc"]) as connection:
        for stream in range(1, 1 << 20, 2):
            reset = frame(RESET, 0, stream, (8).to_bytes(4, "big"))
            connection.sendall(frame(HEADERS, END_HEADERS, stream, block) + reset)


def parked_bodies(ports, key=None):
    """Messages of 15 MB that stop after the first window."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(ports["grpc"])) for _ in range(8)]
        for connection in connections:
            for stream in range(1, 41, 2):
                begin = b"\x00" + (15 << 20).to_bytes(4, "big") + b"x" * 3000
                connection.sendall(
                    frame(HEADERS, END_HEADERS, stream, headers(GENERATE, key)) + frame(DATA, 0, stream, begin)
                )
        time.sleep(5)


def parked_bodies_with_a_key(ports):
    """The same with a valid key."""
    parked_bodies(ports, "the-hogging-api-key")


def wrong_keys(ports):
    """Calls with keys that do not exist."""
    with connect(ports["grpc"]) as connection:
        for stream in range(1, 401, 2):
            block = headers(GENERATE, f"no-such-key-{random.random()}")
            connection.sendall(frame(HEADERS, END_HEADERS | END_STREAM, stream, block))
        time.sleep(0.2)


def idle_connections(ports):
    """Connections that say nothing, or end after a part of the preface."""
    with contextlib.ExitStack() as stack:
        for number in range(100):
            connection = stack.enter_context(connect(ports["grpc"], preface=False))
            if number % 2:
                connection.sendall(PREFACE[:10])
        time.sleep(5)


def trickling_metrics(ports):
    """Requests of metrics that come one byte a second."""
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(ports["metrics"], preface=False)) for _ in range(40)]
        for byte in b"GET /metrics HTTP/1.1\r\n":
            for connection in connections:
                connection.sendall(bytes([byte]))
            time.sleep(1)


def hog(ports):
    """Answers of many samples and as many tokens as may be, of which nothing is read; gzip; every slot."""
    with grpc.insecure_channel(f"127.0.0.1:{ports['grpc']}") as channel:
        call = channel.unary_stream(GENERATE)
        metadata = (("authorization", "Bearer the-hogging-api-key"),)
        message = b"\x0a\x01a" + b"\x18\x80\x80\x04"  # text: "a", max_tokens: 65536
        streams = [call(message + b"\x20\x40", metadata=metadata, timeout=8) for _ in range(4)]  # n: 64
        streams += [call(message, metadata=metadata, timeout=8) for _ in range(64)]
        with contextlib.suppress(grpc.RpcError):
            text = b"\x0a" + b"\x80\x80\x80\x05" + bytes(10 << 20)
            next(call(text, metadata=metadata, timeout=8, compression=grpc.Compression.Gzip))
        time.sleep(8)
        for stream in streams:
            stream.cancel()


ATTACKS = {
    attack.__name__: attack
    for attack in (
        header_blocks,
        resets,
        parked_bodies,
        parked_bodies_with_a_key,
        wrong_keys,
        idle_connections,
        trickling_metrics,
        hog,
    )
}


def attack(name, ports):
    """Goes on until the process is killed."""
    while True:
        with contextlib.suppress(OSError, grpc.RpcError):
            ATTACKS[name](ports)
        time.sleep(0.01)


# ---- Measuring ----


def split_processors():
    """Leaves the last processor to the attackers, and returns it. Processes that are started later inherit the rest."""
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) > 1:
        os.sched_setaffinity(0, processors[:-1])
    return processors[-1]


class Usage(threading.Thread):
    """Looks at the server's process once a second."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self._proc = pathlib.Path(f"/proc/{pid}")
        self._ended = threading.Event()
        self.samples = []  # (resident bytes, descriptors, threads)
        self.start()

    def run(self):
        while not self._ended.wait(1):
            pages = int((self._proc / "statm").read_text().split()[1])
            descriptors, threads = (len(os.listdir(self._proc / name)) for name in ("fd", "task"))
            self.samples.append((pages * os.sysconf("SC_PAGE_SIZE"), descriptors, threads))

    def end(self):
        self._ended.set()
        self.join()
        return self.samples


def first_tokens(client, expected, seconds):
    """Asks again and again, and returns the times to the first token and what went wrong."""
    times, wrong = [], []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.monotonic()
        try:
            # The prompt is read each time: what is kept of it would leave hardly anything to measure.
            pieces = client.stream(PROMPT, max_tokens=8, ignore_eos=True, sampling=GREEDY, cache=False)
            text = next(pieces).text
            times.append(time.monotonic() - start)
            text += "".join(piece.text for piece in pieces)
            if expected and text != expected:
                wrong.append(f"the answer is {text!r}")
        except Exception as error:  # pylint: disable=broad-except
            wrong.append(str(error))
        time.sleep(0.05)
    return times, wrong


def percentile(values, share):
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def measure(seconds, attacks, quiet_seconds=10):
    """Returns what main() prints."""
    attackers_processor = split_processors()
    with cluster.Cluster() as servers:
        keys = servers.folder / "keys.yaml"
        keys.write_text(KEYS)
        # Kept texts would fill their share of the memory, and hide what else grows.
        servers.start_serve(api_key_file=keys, max_num_seqs=16, context_memory="64MiB")
        servers.wait_ready()
        client = servers.client(api_key="the-honest-api-key")
        expected = client.generate(PROMPT, max_tokens=8, ignore_eos=True, sampling=GREEDY).text
        quiet, wrong = first_tokens(client, expected, quiet_seconds)
        ports = {"grpc": servers.ports.grpc, "metrics": servers.ports.metrics}
        usage = Usage(servers.server.pid)
        # Linux divides processors among sessions: attackers in the client's own would leave it too little.
        attackers = [
            subprocess.Popen(
                [sys.executable, __file__, "--attack", name, "--ports", json.dumps(ports)], start_new_session=True
            )
            for name in attacks
        ]
        for attacker in attackers:
            os.sched_setaffinity(attacker.pid, [attackers_processor])
        try:
            loaded, more_wrong = first_tokens(client, expected, seconds)
        finally:
            for attacker in attackers:
                attacker.kill()
                attacker.wait()
        samples = usage.end()
        half = len(samples) // 2
        result = {"seconds": seconds, "attacks": list(attacks), "failures": wrong + more_wrong}
        for name, times in (("quiet", quiet), ("attacked", loaded)):
            result[name] = {
                "requests": len(times),
                "first_token_p50_seconds": statistics.median(times),
                "first_token_p99_seconds": percentile(times, 0.99),
            }
        for index, name in enumerate(("resident_bytes", "descriptors", "threads")):
            values = [sample[index] for sample in samples]
            result[name] = {
                "begin": values[0],
                "most_of_first_half": max(values[:half]),
                "most_of_second_half": max(values[half:]),
            }
        return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600, help="how long the attack lasts (default 600)")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS), help="which (default: all)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--attack", choices=ATTACKS, help=argparse.SUPPRESS)
    parser.add_argument("--ports", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.attack:
        attack(arguments.attack, arguments.ports)
    result = measure(arguments.seconds, attacks=arguments.attacks)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        print(f"{'':10} {'requests':>9} {'first token p50':>16} {'p99':>9}")
        for name in ("quiet", "attacked"):
            row = result[name]
            p50, p99 = (1e3 * row[f"first_token_{which}_seconds"] for which in ("p50", "p99"))
            print(f"{name:10} {row['requests']:9} {p50:13.1f} ms {p99:6.1f} ms")
        for which in ("p50", "p99"):
            ratio = result["attacked"][f"first_token_{which}_seconds"] / result["quiet"][f"first_token_{which}_seconds"]
            missed = ": MISSED" if ratio > 3 else ""
            print(f"{which}: {ratio:.2f} times the quiet value; the aim is 3 at most{missed}")
        for name in ("resident_bytes", "descriptors", "threads"):
            print(name, ", ".join(f"{key} {value:,}" for key, value in result[name].items()))
        print(f"{len(result['failures'])} honest requests failed", *sorted(set(result["failures"]))[:10], sep="\n")
    sys.exit(1 if result["failures"] else 0)


if __name__ == "__main__":
    main()
