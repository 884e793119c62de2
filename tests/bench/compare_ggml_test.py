#!/usr/bin/env python3
"""What compare_ggml.py reads, and the GGUF files that it makes."""

import contextlib
import io
import json
import pathlib
import struct
import tempfile
import unittest

import compare_ggml
from compare_ggml import F16, F32, Q4_0, Q8_0


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def gguf(*pairs, version=3, count=None):
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(pairs) if count is None else count) + b"".join(pairs)


def uint32(name, value):
    return text(name) + struct.pack("<II", 4, value)


FAMILY = text("general.architecture") + struct.pack("<I", 8) + text("rwkv6")
SIZES = [uint32("rwkv6.block_count", 24), uint32("rwkv6.embedding_length", 2048)]


class Files(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = pathlib.Path(folder.name) / "model.gguf"

    def shape(self, data):
        self.path.write_bytes(data)
        return compare_ggml.read_gguf_shape(self.path)


class GgufShapeTest(Files):
    def test_sizes_and_type(self):
        tokens = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("bc")
        scores = text("tokenizer.ggml.scores") + struct.pack("<IIQff", 9, 6, 2, 1, 2)
        shape = self.shape(gguf(FAMILY, tokens, scores, *SIZES, uint32("general.file_type", 7)))
        expected = {"family": "rwkv6", "layers": 24, "width": 2048, "type": "Q8_0", "vocab_size": 2}
        self.assertEqual(shape, expected)

    def test_unknown_type_has_its_number(self):
        self.assertEqual(self.shape(gguf(FAMILY, *SIZES, uint32("general.file_type", 99)))["type"], "type 99")

    def test_hostile_files_are_refused(self):
        whole = gguf(FAMILY, *SIZES)
        long_string = text("k") + struct.pack("<IQ", 8, 1 << 60)
        long_array = text("k") + struct.pack("<IIQ", 9, 0, 1 << 60)
        nested = text("k") + struct.pack("<IIQ", 9, 9, 1)
        for data, message in (
            (b"GGML", "not a GGUF"),
            (gguf(version=9), "version 9"),
            (gguf(FAMILY, *SIZES, count=1 << 40), "keys"),
            (gguf(long_string), "bytes of a string"),
            (gguf(long_array), "elements of an array"),
            (gguf(nested), "unknown type 9"),
            (gguf(*SIZES), "general.architecture"),
            (gguf(FAMILY), "rwkv6.block_count"),
            (whole[:-1], "ends within"),
        ):
            with self.subTest(message), self.assertRaisesRegex(compare_ggml.GgufError, message):
                self.shape(data)


class RandomGgufTest(Files):
    def tensors(self, data):
        """(name, sizes, type, offset), and where their data begin."""
        file = io.BytesIO(data)
        count = struct.unpack("<QQ", file.read(24)[8:])
        file.seek(0)
        compare_ggml.GgufReader(file, "made").metadata()
        found = []
        for _ in range(count[0]):
            (size,) = struct.unpack("<Q", file.read(8))
            name = file.read(size).decode()
            (rank,) = struct.unpack("<I", file.read(4))
            found.append((name, struct.unpack(f"<{rank}Q", file.read(8 * rank)), *struct.unpack("<IQ", file.read(12))))
        return found, -(-file.tell() // 32) * 32

    def test_file_is_whole_in_every_type(self):
        for kind, name in ((F16, "F16"), (Q8_0, "Q8_0"), (Q4_0, "Q4_0")):
            with self.subTest(name):
                compare_ggml.write_random_gguf(self.path, layers=2, width=64, vocab_size=96, matrix_type=kind)
                shape = compare_ggml.read_gguf_shape(self.path)
                expected = {"family": "rwkv6", "layers": 2, "width": 64, "type": name, "vocab_size": 96}
                self.assertEqual(shape, expected)
                data = self.path.read_bytes()
                tensors, begin = self.tensors(data)
                self.assertEqual(len({tensor[0] for tensor in tensors}), len(tensors))
                end = 0
                for _, sizes, tensor_type, offset in tensors:
                    self.assertEqual(offset, end)
                    end = -(-(offset + compare_ggml.tensor_bytes(sizes, tensor_type)) // 32) * 32
                self.assertEqual(begin + end, len(data))
                kinds = {tensor[0]: tensor[2] for tensor in tensors}
                self.assertEqual(kinds["blk.1.channel_mix_value.weight"], kind)
                self.assertEqual(kinds["blk.1.time_mix_w1.weight"], F32)

    def test_blocks_hold_numbers_within_the_limits(self):
        rng = compare_ggml.random.Random(1)
        half = compare_ggml.random_blocks(rng, F16, (-0.5, 0.5), 100)
        self.assertTrue(all(-0.5 <= value <= 0.5 for value in struct.unpack("<100e", half)))
        for kind, steps in ((Q8_0, 127), (Q4_0, 8)):
            blocks = compare_ggml.random_blocks(rng, kind, (-0.5, 0.5), 2)
            self.assertEqual(len(blocks), 2 * compare_ggml.BLOCK[kind][1])
            self.assertAlmostEqual(struct.unpack("<e", blocks[:2])[0], 0.5 / steps, places=4)

    def test_rows_must_be_whole_blocks(self):
        with self.assertRaisesRegex(ValueError, "whole blocks of 32"):
            compare_ggml.tensor_bytes((48, 2), Q8_0)


class ReportsTest(unittest.TestCase):
    def test_llama_bench(self):
        tests = [
            {"n_prompt": 512, "n_gen": 0, "avg_ts": 36.5, "build_commit": "abc", "build_number": 7, "cpu_info": "CPU"},
            {"n_prompt": 0, "n_gen": 48, "avg_ts": 7.5, "build_commit": "abc", "build_number": 7, "cpu_info": "CPU"},
        ]
        self.assertEqual(compare_ggml.parse_llama_bench(json.dumps(tests)), (36.5, 7.5, "abc (7), CPU"))
        with self.assertRaisesRegex(ValueError, "no decode rate"):
            compare_ggml.parse_llama_bench(json.dumps(tests[:1]))

    def test_engine_bench(self):
        shape = {"layers": 24, "width": 2048}
        figures = [
            {"quantity": "pre-fill, 512 tokens, tokens/s", "column": "int8", "value": 300.5},
            {"quantity": "pre-fill, of that product", "column": "int8", "value": 0.7},
            {"quantity": "decode, 64 to 112 tokens of context, tokens/s", "column": "int8", "value": 17.5},
        ]
        report = {"models": {"int8": shape}, "figures": figures}
        self.assertEqual(compare_ggml.parse_engine_bench(json.dumps(report)), (300.5, 17.5, shape))
        del figures[0]
        with self.assertRaisesRegex(ValueError, "0 rates of pre-fill"):
            compare_ggml.parse_engine_bench(json.dumps(report))

    def test_differences(self):
        theirs = {"layers": 24, "width": 2048, "vocab_size": None}
        self.assertEqual(compare_ggml.shape_differences(theirs, {"layers": 24, "width": 2048, "vocab_size": 9}), [])
        differences = compare_ggml.shape_differences(theirs, {"layers": 32, "width": 2048, "vocab_size": 9})
        self.assertEqual(differences, ["layers 24 in the GGUF file, 32 in our model"])


class MainTest(unittest.TestCase):
    def run_main(self, *arguments):
        with contextlib.redirect_stderr(io.StringIO()) as said:
            status = compare_ggml.main(arguments)
        return status, said.getvalue()

    def test_skipped_without_the_program(self):
        status, said = self.run_main("--llama-bench", "/no/such/program", "--random", "/tmp")
        self.assertEqual(status, 77)
        self.assertIn("/no/such/program", said)

    def test_every_file_needs_a_model(self):
        with self.assertRaises(SystemExit), contextlib.redirect_stderr(io.StringIO()) as said:
            compare_ggml.parse_options(["--gguf", "a", "b", "--model", "c"])
        self.assertIn("2 --gguf and 1 --model", said.getvalue())


if __name__ == "__main__":
    unittest.main()
