#!/usr/bin/env python3
"""Runs scenarios one after another, each against a server of its own.

run.py [--program FILE] [--model FILE] [--variant NAME] [--out FOLDER] [--before FOLDER] [SCENARIO...]

A scenario is a file of this folder without its ending; the default is all of them. Writes FOLDER/SCENARIO.json: the
report of `goldfinch load-test --scenario`, the load of the machine and how the server was started. Prints a table,
beside the figures of an earlier run if --before names its folder. Fails if a request failed or a server did not start;
an aim that is missed is shown, and fails with --strict.
"""

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import time

FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parents[2]
SECONDS_MAX = 300  # until a server is ready; a large model on a busy machine takes a while


class Failure(Exception):
    """Something to tell in one line."""


def scenario_names():
    return sorted(path.stem for path in FOLDER.glob("*.textproto"))


@contextlib.contextmanager
def server(program, flags):
    """Starts `goldfinch serve`, and yields its address once it is ready."""
    with tempfile.TemporaryFile() as log:
        command = [program, "serve", *flags, "--grpc-port", "0", "--metrics-port", "-1", "--ready-json"]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        try:
            ready, _, _ = select.select([process.stdout], [], [], SECONDS_MAX)
            line = process.stdout.readline() if ready else b""
            if not line:
                raise Failure(f"the server does not start:\n{tail(log)}")
            address = f"127.0.0.1:{json.loads(line)['grpc_port']}"
            wait_ready(program, address, process, log)
            yield address
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def tail(log):
    log.seek(0)
    return log.read()[-2000:].decode(errors="backslashreplace")


def wait_ready(program, address, process, log):
    deadline = time.monotonic() + SECONDS_MAX
    while time.monotonic() < deadline and process.poll() is None:
        status = subprocess.run([program, "status", "--server", address, "--json"], capture_output=True, check=False)
        if status.returncode == 0:
            groups = json.loads(status.stdout)["cluster"].get("groups", [])
            if groups and all(group["state"] == "READY" for group in groups):
                return
        time.sleep(0.1)
    raise Failure(f"the server does not become ready:\n{tail(log)}")


def run_scenario(name, arguments):
    """Returns what is written of the scenario."""
    flags = ["--model", arguments.model, "--pipeline-parallel-size", str(arguments.stages), *arguments.serve_flags]
    load_before = os.getloadavg()[0]
    with server(arguments.program, flags) as address:
        command = [arguments.program, "load-test", "--server", address, "--scenario", FOLDER / f"{name}.textproto"]
        command += ["--json", "--seed", str(arguments.seed)]
        command += ["--variant", arguments.variant] if arguments.variant else []
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "serve_flags": [str(flag) for flag in flags],
        "cpus": os.cpu_count(),
        "load_average_before": load_before,
        "load_average_after": os.getloadavg()[0],
        "exit_code": done.returncode,
        "report": json.loads(done.stdout) if done.stdout else None,
    }


def milliseconds(latencies, share):
    return 1e3 * latencies[share] if latencies["count"] else None


def figures(report):
    """{(group, run): [ms to the first token p50, p99, ms between tokens p50, p99, tokens/s in, out]}."""
    rows = {}
    for group in report["groups"]:
        for run in ("quiet", "together"):
            if group[run] is None:
                continue
            first, inter = group[run]["time_to_first_token_seconds"], group[run]["inter_token_seconds"]
            rows[group["name"], run] = [
                *(milliseconds(latencies, share) for latencies in (first, inter) for share in ("p50", "p99")),
                group[run]["prompt_tokens_per_second"],
                group[run]["output_tokens_per_second"],
            ]
    totals = [report["prompt_tokens_per_second"], report["output_tokens_per_second"]]
    rows["all", "together"] = [None] * 4 + totals
    return rows


def shown(value, before):
    if value is None:
        return "-"
    return f"{value:.4g}" if before is None else f"{value:.4g} (was {before:.4g})"


def table(name, report, before):
    """Lines of Markdown for one scenario."""
    lines = []
    earlier = figures(before) if before else {}
    for (group, run), values in figures(report).items():
        old = earlier.get((group, run), [None] * len(values))
        cells = [shown(value, was) for value, was in zip(values, old)]
        lines.append("| " + " | ".join([name, group, run, *cells]) + " |")
    return lines


HEAD = [
    "| scenario | group | run | first token p50, ms | p99 | inter-token p50, ms | p99 | tokens/s in | tokens/s out |",
    "|---|---|---|---|---|---|---|---|---|",
]


def remarks(name, result):
    """What the table has no place for."""
    report = result["report"]
    if report is None:
        yield f"{name}: no report, exit code {result['exit_code']}"
        return
    memory = report["memory"]
    if memory:
        idle, waiting = memory["cache_idle_share_mean"], memory["cache_idle_share_mean_while_waiting"]
        while_waiting = "" if waiting is None else f", {waiting:.0%} while requests waited"
        of_memory = memory["memory_idle_share_mean"]
        yield f"{name}: {of_memory:.0%} of the memory idle; {idle:.0%} of the cache not reserved{while_waiting}"
    for aim in report["aims"]:
        seconds, limit = (
            "-" if value is None else f"{1e3 * value:.4g} ms" for value in (aim["seconds"], aim["limit_seconds"])
        )
        verdict = "met" if aim["met"] else "MISSED"
        yield f"{name}: {verdict}: {aim['group']}, {aim['measure']} is {seconds}, at most {limit}"
    for group in report["groups"]:
        for run in ("quiet", "together"):
            for code, errors in (group[run] or {"errors": {}})["errors"].items():
                yield f"{name}: {errors['count']} {code} in {group['name']}, {run}: {errors['message']}"


def read_before(folder, name):
    path = folder / f"{name}.json" if folder else None
    return json.loads(path.read_text(encoding="utf-8"))["report"] if path and path.exists() else None


def is_good(result, strict):
    if result["exit_code"] != 0 or result["report"] is None:
        return False
    return not strict or all(aim["met"] for aim in result["report"]["aims"])


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    packed = ROOT / "bin" / "goldfinch"  # where the tarball has it
    program = packed if packed.exists() else ROOT / "bazel-bin" / "clients" / "cli" / "goldfinch"
    parser.add_argument("--program", type=pathlib.Path, default=program)
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "tests" / "demo_model" / "model.pth")
    parser.add_argument("--stages", type=int, default=4, help="workers in the server's process, default 4")
    parser.add_argument("--serve-flags", default="", help="more flags of `goldfinch serve`, in one text")
    parser.add_argument("--variant", help="of all scenarios, for example small")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="folder for the reports, default: none are written")
    parser.add_argument("--before", type=pathlib.Path, help="folder with the reports of an earlier run")
    parser.add_argument("--strict", action="store_true", help="fail if an aim is missed")
    parser.add_argument("scenarios", nargs="*", default=[], metavar="SCENARIO", help=", ".join(scenario_names()))
    parsed = parser.parse_args(arguments)
    parsed.serve_flags = parsed.serve_flags.split()
    unknown = set(parsed.scenarios) - set(scenario_names())
    if unknown:
        parser.error(f"there is no scenario {', '.join(sorted(unknown))}")
    return parsed


def main(arguments):
    arguments = parse(arguments)
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
    results = {}
    lines = []
    for name in arguments.scenarios or scenario_names():
        result = results[name] = run_scenario(name, arguments)
        if arguments.out:
            text = json.dumps(result, indent=1) + "\n"
            (arguments.out / f"{name}.json").write_text(text, encoding="utf-8")
        if result["report"]:
            lines += table(name, result["report"], read_before(arguments.before, name))
    print("\n".join(HEAD + lines) + "\n")
    for name, result in results.items():
        print("\n".join(remarks(name, result)))
    return 0 if all(is_good(result, arguments.strict) for result in results.values()) else 1


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the server, too
    try:
        sys.exit(main(sys.argv[1:]))
    except Failure as failure:
        sys.exit(f"run.py: {failure}")
