#!/usr/bin/env python3
"""Runs a ggml-based program and engine_bench in turns on models of one shape, and prints the ratio of their rates.

The program is llama-bench of llama.cpp, which the user has. What it runs is either a GGUF file of the user's (--gguf),
or random weights: --random FOLDER makes an RWKV-6 (Finch) of 24 layers and width 2048 there, once in F16, Q8_0 and Q4_0
as GGUF, and once in bf16, int8 and int4 for us. Random numbers are multiplied as fast as learned ones. With --model,
ours are other models of the same layers and width, GoldFinch for example: ggml has no such model, so a Finch is the
nearest thing that it runs.

  bazel build //clients/cli:goldfinch //tests/bench:engine_bench //tests/bench:bench_model
  tests/bench/compare_ggml.py --llama-bench llama.cpp/build/bin/llama-bench --random .cache/bench

Both run with the same number of threads, one after the other, a few times; the medians count. Exits with 77 if the
program is missing, with 1 if the shapes differ (--any-shape compares all the same).
"""

import argparse
import json
import math
import os
import pathlib
import random
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile

SKIPPED = 77
PROMPT_TOKENS = 512
DECODE_TOKENS = 48

# ---- GGUF -----------------------------------------------------------------------------------------------------------

MAGIC = b"GGUF"
ALIGNMENT = 32
UINT32, FLOAT32, STRING, ARRAY = 4, 6, 8, 9
# By the number of a value's type.
VALUE_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
PAIRS_MAX = 1 << 16
STRING_MAX = 1 << 24
ELEMENTS_MAX = 1 << 26
FILE_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 7: "Q8_0"}


class GgufError(Exception):
    """A file that is no GGUF, or one beyond the limits above."""


class GgufReader:
    """The metadata of a GGUF file; every length in it may be a lie."""

    def __init__(self, file, path):
        self._file = file
        self._path = path

    def metadata(self):
        """Keys and values; of arrays the number of elements."""
        if self._bytes(4) != MAGIC:
            raise GgufError(f"{self._path}: not a GGUF file")
        version = self._value("I")
        if version not in (2, 3):
            raise GgufError(f"{self._path}: GGUF version {version}, only 2 and 3 are known")
        self._value("Q")  # tensors
        pairs = self._limited(self._value("Q"), PAIRS_MAX, "keys")
        return {self._string(): self._typed(self._value("I")) for _ in range(pairs)}

    def _typed(self, kind):
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            element, count = self._value("I"), self._limited(self._value("Q"), ELEMENTS_MAX, "elements of an array")
            if element == STRING:
                for _ in range(count):
                    self._string()
            else:
                self._skip(count * struct.calcsize("<" + self._format(element)))
            return count
        return self._value(self._format(kind))

    def _format(self, kind):
        if kind not in VALUE_FORMATS:
            raise GgufError(f"{self._path}: a value of unknown type {kind}")
        return VALUE_FORMATS[kind]

    def _limited(self, count, limit, what):
        if count > limit:
            raise GgufError(f"{self._path}: {count} {what}, the limit is {limit}")
        return count

    def _string(self):
        size = self._limited(self._value("Q"), STRING_MAX, "bytes of a string")
        return self._bytes(size).decode("utf-8", errors="replace")

    def _value(self, form):
        return struct.unpack("<" + form, self._bytes(struct.calcsize("<" + form)))[0]

    def _bytes(self, size):
        data = self._file.read(size)
        if len(data) != size:
            raise GgufError(f"{self._path}: ends within its metadata")
        return data

    def _skip(self, size):
        while size > 0:
            size -= len(self._bytes(min(size, 1 << 20)))


def read_gguf_shape(path):
    """What the metadata says of the model."""
    with open(path, "rb") as file:
        metadata = GgufReader(file, path).metadata()
    family = metadata.get("general.architecture")
    if not isinstance(family, str):
        raise GgufError(f"{path}: no general.architecture")
    shape = {"family": family}
    for name, key in (("layers", "block_count"), ("width", "embedding_length")):
        value = metadata.get(f"{family}.{key}")
        if not isinstance(value, int):
            raise GgufError(f"{path}: no {family}.{key}")
        shape[name] = value
    file_type = metadata.get("general.file_type")
    shape["type"] = FILE_TYPES.get(file_type, f"type {file_type}")
    shape["vocab_size"] = metadata.get(f"{family}.vocab_size", metadata.get("tokenizer.ggml.tokens"))
    return shape


# ---- A random RWKV-6 ------------------------------------------------------------------------------------------------

F32, F16, Q4_0, Q8_0 = 0, 1, 2, 8
BLOCK = {F32: (1, 4), F16: (1, 2), Q4_0: (32, 18), Q8_0: (32, 34)}  # elements, bytes
FILE_TYPE_OF = {F16: 1, Q4_0: 2, Q8_0: 7}
HEAD_SIZE, MIX_RANK, DECAY_RANK = 64, 32, 64
CHUNK_BLOCKS = 1 << 14


def finch_tensors(layers, width, vocab_size, matrix_type):
    """(name, sizes with the innermost first, type, (low, high)), as llama.cpp's rwkv6 has them."""
    hidden = width * 7 // 2

    def matrix(name, inputs, outputs):
        limit = math.sqrt(3 / inputs)
        return (name + ".weight", (inputs, outputs), matrix_type, (-limit, limit))

    def norm(name):
        return [(name + ".weight", (width,), F32, (0.9, 1.1)), (name + ".bias", (width,), F32, (-0.1, 0.1))]

    def small(name, *sizes, low=-0.02, high=0.02):
        return (name + ".weight", sizes, F32, (low, high))  # F32 in every file of llama.cpp's

    tensors = [matrix("token_embd", width, vocab_size), *norm("token_embd_norm")]
    for layer in range(layers):
        block = f"blk.{layer}."
        time, channel = block + "time_mix_", block + "channel_mix_"
        tensors += norm(block + "attn_norm") + norm(block + "attn_norm_2") + norm(time + "ln")
        tensors += [
            small(time + "w1", width, 5 * MIX_RANK),
            small(time + "w2", MIX_RANK, width, 5),
            small(time + "lerp_x", width, 1, 1, low=0, high=1),
            small(time + "lerp_fused", width, 1, 1, 5, low=0, high=1),
            small(time + "first", HEAD_SIZE, width // HEAD_SIZE, low=0, high=1),
            small(time + "decay", width, low=-6, high=-1),
            small(time + "decay_w1", width, DECAY_RANK),
            small(time + "decay_w2", DECAY_RANK, width),
            small(channel + "lerp_k", width, 1, 1, low=0, high=1),
            small(channel + "lerp_r", width, 1, 1, low=0, high=1),
            matrix(channel + "key", width, hidden),
            matrix(channel + "value", hidden, width),
            matrix(channel + "receptance", width, width),
        ]
        tensors += [matrix(time + name, width, width) for name in ("key", "value", "receptance", "gate", "output")]
    return [*tensors, *norm("output_norm"), matrix("output", width, vocab_size)]


def tensor_bytes(sizes, kind):
    elements, size = BLOCK[kind]
    if sizes[0] % elements:
        raise ValueError(f"rows of {sizes[0]} are not whole blocks of {elements}")
    return math.prod(sizes) // elements * size


def random_blocks(rng, kind, limits, count):
    """Blocks of values drawn between the limits."""
    low, high = limits
    if kind in (F32, F16):
        values = [rng.uniform(low, high) for _ in range(count)]
        return struct.pack(f"<{count}{'f' if kind == F32 else 'e'}", *values)
    steps = 8 if kind == Q4_0 else 127
    scale = struct.pack("<e", high / steps)
    payload = BLOCK[kind][1] - len(scale)
    return b"".join(scale + rng.randbytes(payload) for _ in range(count))


def write_random_gguf(path, layers, width, vocab_size, matrix_type):
    """One piece of random blocks again and again: what is multiplied lies at other places in memory all the same."""
    rng = random.Random(1)
    tensors = finch_tensors(layers, width, vocab_size, matrix_type)

    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    def key(name, kind, value):
        form = {UINT32: "<I", FLOAT32: "<f"}
        packed = text(value) if kind == STRING else struct.pack(form[kind], value)
        return text(name) + struct.pack("<I", kind) + packed

    pairs = [
        key("general.architecture", STRING, "rwkv6"),
        key("general.alignment", UINT32, ALIGNMENT),
        key("general.file_type", UINT32, FILE_TYPE_OF[matrix_type]),
        key("rwkv6.context_length", UINT32, 1 << 20),
        key("rwkv6.embedding_length", UINT32, width),
        key("rwkv6.block_count", UINT32, layers),
        key("rwkv6.feed_forward_length", UINT32, width * 7 // 2),
        key("rwkv6.attention.head_count", UINT32, 0),
        key("rwkv6.attention.layer_norm_epsilon", FLOAT32, 1e-5),
        key("rwkv6.rescale_every_n_layers", UINT32, 6),
        key("rwkv6.wkv.head_size", UINT32, HEAD_SIZE),
        key("rwkv6.time_mix_extra_dim", UINT32, MIX_RANK),
        key("rwkv6.time_decay_extra_dim", UINT32, DECAY_RANK),
        key("rwkv6.vocab_size", UINT32, vocab_size),
        key("tokenizer.ggml.model", STRING, "no_vocab"),
    ]
    infos, offset = [], 0
    for name, sizes, kind, _ in tensors:
        infos.append(text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset))
        offset += -(-tensor_bytes(sizes, kind) // ALIGNMENT) * ALIGNMENT
    header = MAGIC + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(infos)

    chunks = {}
    partial = f"{path}.partial"
    with open(partial, "wb") as file:
        file.write(header + bytes(-len(header) % ALIGNMENT))
        for _, sizes, kind, limits in tensors:
            if (kind, limits) not in chunks:
                chunks[kind, limits] = random_blocks(rng, kind, limits, CHUNK_BLOCKS)
            chunk, left = chunks[kind, limits], tensor_bytes(sizes, kind)
            padding = -left % ALIGNMENT
            while left > 0:
                left -= file.write(chunk[:left])
            file.write(bytes(padding))
    os.replace(partial, path)


# ---- Programs -------------------------------------------------------------------------------------------------------


def run(command):
    """Its standard output."""
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or ["it says nothing"]
        sys.exit(f"compare_ggml: {command[0]} ended with {result.returncode}: {lines[-1]}")
    return result.stdout


def parse_llama_bench(text):
    """(pre-fill, decode) in tokens/s, and the build, out of llama-bench's JSON."""
    rates = {}
    build = ""
    for test in json.loads(text):
        prompt, decoded = test["n_prompt"], test["n_gen"]
        if prompt > 0 and decoded == 0:
            rates["prefill"] = test["avg_ts"]
        elif decoded > 0 and prompt == 0:
            rates["decode"] = test["avg_ts"]
        build = f"{test.get('build_commit', '')} ({test.get('build_number', '')}), {test.get('cpu_info', '')}"
    missing = {"prefill", "decode"} - rates.keys()
    if missing:
        raise ValueError(f"llama-bench gave no {' and no '.join(sorted(missing))} rate")
    return rates["prefill"], rates["decode"], build


def parse_engine_bench(text):
    """(pre-fill, decode) in tokens/s, and the shape, out of engine_bench's JSON of one model."""
    report = json.loads(text)
    ((_, shape),) = report["models"].items()

    def rate(start):
        figures = [figure for figure in report["figures"] if figure["quantity"].startswith(start)]
        rates = [figure["value"] for figure in figures if figure["quantity"].endswith("tokens/s")]
        if len(rates) != 1:
            raise ValueError(f"engine_bench gave {len(rates)} rates of {start}")
        return rates[0]

    return rate("pre-fill, "), rate("decode, "), shape


def shape_differences(theirs, ours):
    """Texts, one for each size that differs; empty if none does."""
    return [
        f"{name} {theirs[name]} in the GGUF file, {ours[name]} in our model"
        for name in ("layers", "width", "vocab_size")
        if theirs[name] is not None and theirs[name] != ours[name]
    ]


def describe_ours(shape):
    if shape["gold_layers"]:
        return f"GoldFinch, {shape['layers'] - shape['gold_layers']} Finch-side and {shape['gold_layers']} GOLD layers"
    return f"{shape['layers']} Finch-side layers"


def llama_bench(options, gguf):
    command = [options.llama_bench, "-m", gguf, "-p", PROMPT_TOKENS, "-n", DECODE_TOKENS, "-r", 1, "-o", "json"]
    return parse_llama_bench(run([*command, "-t", options.threads, "-ngl", 0]))  # layers on a GPU: none


def engine_bench(options, model):
    with tempfile.TemporaryDirectory() as folder:
        report = pathlib.Path(folder) / "report.json"
        command = [options.engine_bench, "--model", model, "--threads", options.threads, "--parts", "decode", "prefill"]
        run([*command, "--prompts", PROMPT_TOKENS, "--decode-tokens", DECODE_TOKENS, "--json", report])
        return parse_engine_bench(report.read_text(encoding="utf-8"))


def compare(options, gguf, model):
    """Prints the row of one pair."""
    theirs_shape = read_gguf_shape(gguf)
    theirs, ours = [], []
    for _ in range(options.rounds):
        *rates, shape = engine_bench(options, model)
        differences = shape_differences(theirs_shape, shape)
        if differences and not options.any_shape:
            sys.exit(f"compare_ggml: {gguf} and {model} differ: {', '.join(differences)}; --any-shape compares anyway")
        ours.append(rates)
        *rates, build = llama_bench(options, gguf)
        theirs.append(rates)
    cells = []
    for which in range(2):
        their_rate = statistics.median(rates[which] for rates in theirs)
        our_rate = statistics.median(rates[which] for rates in ours)
        cells.append(f"{their_rate:.1f} | {our_rate:.1f} | {our_rate / their_rate:.2f}")
    print(f"| {theirs_shape['family']} {theirs_shape['type']} | {pathlib.Path(model).stem} | {' | '.join(cells)} |")
    for difference in differences:
        print(f"  differs: {difference}")
    sys.stdout.flush()
    return build, shape


def random_pairs(options):
    """Makes what is not there yet; (GGUF, our model) by precision."""
    folder = pathlib.Path(options.random)
    folder.mkdir(parents=True, exist_ok=True)
    size = f"l{options.layers}-d{options.width}-v{options.vocab_size}"
    ggufs = []
    for kind, name in ((F16, "f16"), (Q8_0, "q8_0"), (Q4_0, "q4_0")):
        path = folder / f"random-rwkv6-{size}-{name}.gguf"
        if not path.exists():
            print(f"making {path}", file=sys.stderr)
            write_random_gguf(path, options.layers, options.width, options.vocab_size, kind)
        ggufs.append(path)
    if options.model:
        return ggufs, options.model
    source = folder / f"random-finch-{size}-bf16.safetensors"
    if not source.exists():
        partial = f"{source}.partial"
        sizes = ["--layers", options.layers, "--width", options.width, "--vocab-size", options.vocab_size]
        run([options.bench_model, "--finch", "--out", partial, *sizes])
        os.replace(partial, source)
    models = [source]
    for name in ("int8", "int4"):
        path = folder / f"random-finch-{size}-{name}.safetensors"
        if not path.exists():
            run([options.goldfinch, "quantize", source, path, "--dtype", name])  # leaves no half of a file
        models.append(path)
    return ggufs, models


def parse_options(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-bench", default="llama-bench", help="llama.cpp's program")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--gguf", nargs="+", help="files, each compared with the --model at its place")
    source.add_argument("--random", metavar="FOLDER", help="where random models are, or are made")
    parser.add_argument("--model", nargs="+", default=[], help="our models")
    parser.add_argument("--layers", type=int, default=24, help="of random models")
    parser.add_argument("--width", type=int, default=2048, help="of random models, a multiple of 64")
    parser.add_argument("--vocab-size", type=int, default=65536, help="of random models")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of both programs")
    parser.add_argument("--rounds", type=int, default=3, help="of both programs in turns")
    parser.add_argument("--any-shape", action="store_true", help="compare models of different sizes")
    parser.add_argument("--engine-bench", default="bazel-bin/tests/bench/engine_bench")
    parser.add_argument("--bench-model", default="bazel-bin/tests/bench/bench_model")
    parser.add_argument("--goldfinch", default="bazel-bin/clients/cli/goldfinch")
    options = parser.parse_args(arguments)
    if options.gguf and len(options.gguf) != len(options.model):
        parser.error(f"{len(options.gguf)} --gguf and {len(options.model)} --model: one of ours for each of theirs")
    if options.random and options.model and len(options.model) != 3:
        parser.error(f"--random has F16, Q8_0 and Q4_0: it takes 3 --model, not {len(options.model)}")
    if options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: must be at least 1")
    if options.random and options.width % HEAD_SIZE:
        parser.error(f"--width {options.width}: must be a multiple of {HEAD_SIZE}")
    return options


def main(arguments):
    options = parse_options(arguments)
    if shutil.which(options.llama_bench) is None:
        print(f"SKIPPED: no program {options.llama_bench}: --llama-bench names llama.cpp's", file=sys.stderr)
        return SKIPPED
    if shutil.which(options.engine_bench) is None:
        sys.exit(f"compare_ggml: no program {options.engine_bench}: bazel build //tests/bench:engine_bench")
    try:
        ggufs, models = (options.gguf, options.model) if options.gguf else random_pairs(options)
        print(f"| ggml | ours | pre-fill, tokens/s: ggml | ours | ratio | decode: ggml | ours | ratio |")
        print("|---|---|---|---|---|---|---|---|")
        for gguf, model in zip(ggufs, models):
            build, shape = compare(options, gguf, model)
    except KeyError as error:
        sys.exit(f"compare_ggml: a report without {error}")
    except (GgufError, OSError, TypeError, ValueError) as error:
        sys.exit(f"compare_ggml: {error}")
    print(f"llama-bench {build}; ours: {describe_ours(shape)}; {options.threads} threads, medians of {options.rounds}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
