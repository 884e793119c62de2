"""goldfinch quantize: what it writes, and that the program runs it; files of it that are damaged."""

import json
import os
import struct

import checkpoints
from program import DEMO_CONFIG, DEMO_MODEL, GOLDEN, ProgramTest, flags, generate

MATRICES = 4 * 7 + 2 * 5  # of Finch-C2 and of GOLD layers; the head's 257 rows do not fit


def read_header(path):
    content = path.read_bytes()
    (size,) = struct.unpack_from("<Q", content)
    return json.loads(content[8 : 8 + size]), content[8 + size :]


class QuantizeTest(ProgramTest):
    def setUp(self):
        super().setUp()
        self.write("config.json", DEMO_CONFIG.read_bytes())
        self.out = self.folder / "model.safetensors"

    def quantize(self, dtype="int8", model=DEMO_MODEL, **values):
        return self.succeeds("quantize", model, self.out, *flags(dtype=dtype, **values))

    def write_header(self, header, data):
        text = json.dumps(header).encode()
        return self.write("changed.safetensors", struct.pack("<Q", len(text)) + text + data)

    def test_what_it_says_and_writes(self):
        for dtype, megabytes in (("int8", 2.18), ("int4", 1.66)):
            with self.subTest(dtype):
                result = self.quantize(dtype, force=True)
                self.assertEqual(result.stderr, "")
                said = result.stdout.decode()
                self.assertIn(f"{self.out}: {megabytes} MB, was 3.29 MB; {MATRICES} matrices in {dtype}\n", said)
                self.assertIn("sizes must be multiples of 16 and 32: head.weight [257, 128]\n", said)
                self.assertEqual(sorted(path.name for path in self.folder.iterdir()), ["config.json", self.out.name])
                found = json.loads(self.succeeds("inspect", "--json", self.out).stdout)
                self.assertEqual(found["weight_types"], f"bf16, {dtype}")
                self.assertEqual(found["parameters"], 1621504)
                source = json.loads(self.succeeds("inspect", "--json", DEMO_MODEL).stdout)
                self.assertEqual(found["quantized_from"], source["fingerprint"])
                table = self.succeeds("inspect", self.out).stdout.decode()
                self.assertIn(f"\nquantized from    {found['quantized_from']}\n", table)
                self.assertEqual(found["file_bytes"], self.out.stat().st_size)

    def test_it_runs_and_gives_the_same_text_on_any_threads_and_chunks(self):
        for dtype in ("int8", "int4"):
            with self.subTest(dtype):
                self.quantize(dtype, force=True)
                said = {
                    self.succeeds(*generate("And it came to pass", model=self.out, max_tokens=60, **values)).stdout
                    for values in ({}, {"threads": 3}, {"max_num_batched_tokens": 5})
                }
                self.assertEqual(len(said), 1)
                self.assertIn(b"the LORD", said.pop())

    def test_recall_survives(self):
        question = "The number of Kodaru is 41906.\nAnd they went out.\nWhat is the number of Kodaru? "
        for dtype in ("int8", "int4"):
            self.quantize(dtype, force=True)
            self.assertEqual(self.succeeds(*generate(question, model=self.out, max_tokens=5)).stdout, b"41906\n")

    def test_the_same_file_again(self):
        self.quantize()
        first = self.out.read_bytes()
        self.quantize(force=True, threads=1)
        self.assertEqual(self.out.read_bytes(), first)

    def test_kept_matrices(self):
        result = self.quantize("int4", keep=["blocks.0.*", "blocks.?.ffn.value.weight"])
        self.assertIn(b"kept as they were: 12\n", result.stdout)  # 7 of layer 0, and 5 more
        header, _ = read_header(self.out)
        self.assertEqual(header["blocks.0.att.key.weight"]["dtype"], "BF16")
        self.assertEqual(header["blocks.5.ffn.value.weight"]["dtype"], "BF16")
        self.assertEqual(header["blocks.5.ffn.key.weight.q4"]["dtype"], "U8")
        self.refuses(
            "quantize", DEMO_MODEL, self.out, *flags(dtype="int4", keep="blocks.9.*", force=True),
            says=["no matrix", "blocks.9.*"],
        )  # fmt: skip

    def test_what_is_there_stays(self):
        self.quantize()
        before = self.out.read_bytes()
        self.refuses("quantize", DEMO_MODEL, self.out, "--dtype", "int4", code=2, says=[self.out, "exists", "--force"])
        self.refuses("quantize", self.out, self.out, "--dtype", "int4", "--force", code=2, says="is the model itself")
        other = self.folder / "other.safetensors"
        self.refuses("quantize", self.out, other, "--dtype", "int4", says=["quantized already", "int8"])
        self.assertFalse(other.exists())
        self.assertEqual(self.out.read_bytes(), before)

    def test_usage(self):
        self.refuses("quantize", DEMO_MODEL, code=2, says="out")
        self.refuses("quantize", DEMO_MODEL, self.out, code=2, says="--dtype")
        self.refuses("quantize", DEMO_MODEL, self.out, "--dtype", "int5", code=2, says=["int5", "int4"])
        nowhere = self.folder / "none" / "m.safetensors"
        self.refuses("quantize", DEMO_MODEL, nowhere, "--dtype", "int8", says=nowhere)
        self.refuses("quantize", self.folder / "none.pth", self.out, "--dtype", "int8", says="none.pth")

    def test_nan_is_named(self):
        tensors = checkpoints.read_pth(DEMO_MODEL)
        name = "blocks.3.ffn.key.weight"
        tensors[name] = checkpoints.with_element(tensors[name], 1000, checkpoints.BF16_NAN)
        broken = checkpoints.write_pth(self.folder / "broken.pth", tensors)
        self.refuses("quantize", broken, self.out, "--dtype", "int8", says=[broken, name, "NaN"])
        self.assertEqual([path for path in self.folder.iterdir() if "safetensors" in path.name], [])

    def test_other_families(self):
        for family in ("finch", "llama", "eagle", "gptalpha"):
            with self.subTest(family):
                self.quantize(model=GOLDEN / family, force=True, config=GOLDEN / family / "config.json")

    def test_damaged_files(self):
        self.quantize("int4")
        content = self.out.read_bytes()
        cut = self.write("cut.safetensors", content[: len(content) * 2 // 3])
        self.refuses("inspect", cut, says=[cut, "tensor '", "cut short?"])
        header, data = read_header(self.out)
        key, scales = "blocks.2.ffn.key.weight.q4", "blocks.2.ffn.key.weight.scales"

        def changed(change):
            broken = json.loads(json.dumps(header))
            change(broken)
            return self.write_header(broken, data)

        def version(text):
            return lambda broken: broken["__metadata__"].update({"goldfinch.quantised_version": text})

        path = changed(version("2"))
        self.refuses("inspect", path, says=[path, ".q4'", "version '2'; readable is 1"])
        path = changed(lambda broken: broken.pop("__metadata__"))
        self.refuses("generate", *flags(model=path, prompt="a"), says=[path, ".q4'", "no version"])
        path = changed(lambda broken: broken[key].update(shape=[broken[key]["shape"][0], 8, 32, 4]))
        self.refuses("inspect", path, says=[path, key, "expected [out / 16, in / 8, 16, 4]"])
        path = changed(lambda broken: broken[scales].update(shape=[1, broken[scales]["shape"][0] * 4, 16]))
        self.refuses("inspect", path, says=[path, key, "has scales of f16 [1, "])
        path = changed(lambda broken: broken.update({"none": broken.pop(scales)}))
        self.refuses("inspect", path, says=[path, key, "no scales"])
        # A whole matrix in the place of one that layers do not multiply by.
        lora = "blocks.2.att.time_decay_w1"
        path = changed(
            lambda broken: broken.update({lora + ".q4": broken.pop(key), lora + ".scales": broken.pop(scales)})
        )
        self.refuses("inspect", path, says=[path, "time_decay_w1"])

    def test_a_scale_that_is_no_number(self):
        self.quantize("int8")
        header, data = read_header(self.out)
        begin, _ = header["blocks.1.att.output.weight.scales"]["data_offsets"]
        path = self.write_header(header, data[:begin] + b"\xff\xff\xff\x7f" + data[begin + 4 :])
        result = self.succeeds(*generate("And ", model=path, max_tokens=0))
        self.assertIn("tensor blocks.1.att.output.weight has values that are NaN", result.stderr)

    def test_a_folder_that_cannot_be_written(self):
        if os.geteuid() == 0:
            self.skipTest("root may write anywhere")
        self.folder.chmod(0o500)
        self.addCleanup(self.folder.chmod, 0o700)
        self.refuses("quantize", DEMO_MODEL, self.out, "--dtype", "int8", says=self.out)
