"""goldfinch inspect: the demo model's layers and sizes, and what a token of each family keeps."""

import json
import re

import checkpoints
from program import DEMO_MODEL, GOLDEN, ProgramTest

KINDS = ["finch_c2"] * 4 + ["gold"] * 2
WIDTH = 128
HEAD_SIZE = 64

# Layers and bytes a token of the golden models, with a bf16 cache; `c` has 8 numbers, an id takes 2 bytes.
KEYS_AND_VALUES = 2 * WIDTH * 2
FAMILIES = {
    "eagle": (["eagle"] * 2, 0),
    "finch": (["finch"] * 2, 0),
    "finch_c2": (["finch_c2"] * 2, 0),
    "finch_c2_gptalpha": (["finch_c2"] * 2 + ["gptalpha"], KEYS_AND_VALUES),
    "finch_gold": (["finch"] * 2 + ["gold"], 18),
    "goldfinch": (KINDS, 18),
    "gptalpha": (["gptalpha"] * 2, 2 * KEYS_AND_VALUES),
    "llama": (["llama"] * 2, 2 * KEYS_AND_VALUES),
}


def hugging_face_name(name):
    """Of a tensor of a Finch model, in the naming scheme of Hugging Face's library."""
    if name == "head.weight":
        return name
    name = re.sub(r"^emb\.", "embeddings.", name).replace("blocks.0.ln0", "blocks.0.pre_ln")
    name = re.sub(r"(blocks\.\d+)\.att\.", r"\1.attention.", name)
    return "rwkv." + re.sub(r"(blocks\.\d+)\.ffn\.", r"\1.feed_forward.", name)


class InspectTest(ProgramTest):
    def json(self, *arguments):
        result = self.succeeds("inspect", "--json", *arguments)
        self.assertEqual(result.stderr, "")
        return json.loads(result.stdout)

    def test_json(self):
        found = self.json(DEMO_MODEL)
        tensors = checkpoints.read_pth(DEMO_MODEL)
        sizes = [sum(len(t.data) for name, t in tensors.items() if name.startswith(f"blocks.{i}.")) for i in range(6)]
        layers = [{"kind": kind, "bytes": size, "parameters": size // 2} for kind, size in zip(KINDS, sizes)]
        wkv = 4 * WIDTH * HEAD_SIZE
        newest_rows = 6 * 2 * WIDTH + 2 * 2 * WIDTH
        expected = {
            "model": str(DEMO_MODEL),
            "file_bytes": DEMO_MODEL.stat().st_size,
            "parameters": sum(len(tensor.data) // 2 for tensor in tensors.values()),
            "weight_types": "bf16",
            "n_layer": 6,
            "n_embd": WIDTH,
            "heads": 2,
            "head_size": HEAD_SIZE,
            "vocab_size": 257,
            "cache_dtype": "bf16",
            "cache_bytes_per_token": 18,
            "transformer_cache_bytes_per_token": 6 * KEYS_AND_VALUES,
            "state_bytes": 4 * (wkv + newest_rows),
            "layers": layers,
        }
        self.assertRegex(found.pop("fingerprint"), r"\A[0-9a-f]{16}\Z")
        self.assertEqual(found, expected)

    def test_table(self):
        result = self.succeeds("inspect", DEMO_MODEL)
        self.assertEqual(result.stderr, "")
        table = result.stdout.decode()
        for line in (
            r"file +tests/demo_model/model\.pth, 3\.\d+ MB",
            r"parameters +1,621,504 in bf16",
            r"width +128: 2 heads of 64",
            r"vocabulary +257",
            r"state +139 kB a sequence",
            r"cache +18 bytes a token \(bf16\); a transformer of this shape keeps 3,072, 171 times as many",
            r" +0 +finch_c2 +272,640 +545 kB",
            r" +5 +gold +223,616 +447 kB",
            r" +outside +84,480 +169 kB",
        ):
            self.assertRegex(table, rf"(?m)^{line}$")
        self.assertEqual(table.count("finch_c2"), 4)
        self.assertEqual(table.count("gold "), 2)

    def test_cache_types(self):
        for cache, size in (("f32", 34), ("f16", 18), ("bf16", 18), ("int8", 12)):
            with self.subTest(cache):
                self.assertEqual(self.json(DEMO_MODEL, "--cache-dtype", cache)["cache_bytes_per_token"], size)
        self.assertIn(b"34 bytes a token (f32)", self.succeeds("inspect", DEMO_MODEL, "--cache-dtype", "f32").stdout)

    def test_keys_and_values_have_no_8_bit_form(self):
        says = [GOLDEN / "llama", "--cache-dtype is int8", "layer 0 (llama)", "bf16"]
        self.refuses("inspect", GOLDEN / "llama" / "model.pth", "--cache-dtype", "int8", says=says)
        self.assertEqual(self.json(GOLDEN / "finch", "--cache-dtype", "int8")["cache_bytes_per_token"], 0)

    def test_families(self):
        for family, (kinds, cache_bytes) in FAMILIES.items():
            with self.subTest(family):
                found = self.json(GOLDEN / family)
                self.assertEqual([layer["kind"] for layer in found["layers"]], kinds)
                self.assertEqual(found["cache_bytes_per_token"], cache_bytes)
                self.assertEqual(found["transformer_cache_bytes_per_token"], len(kinds) * KEYS_AND_VALUES)
                table = self.succeeds("inspect", GOLDEN / family / "model.pth").stdout.decode()
                self.assertIn(f"\ncache             {cache_bytes:,} bytes a token (bf16)", table)

    def check_is_finch(self, *paths):
        expected = self.json(GOLDEN / "finch" / "model.pth")
        for path in paths:
            with self.subTest(path):
                found = self.json(path)
                for field in ("layers", "parameters", "vocab_size", "head_size"):
                    self.assertEqual(found[field], expected[field], field)

    def test_folders_of_hugging_face(self):
        tensors = {hugging_face_name(n): t for n, t in checkpoints.read_pth(GOLDEN / "finch" / "model.pth").items()}
        config = {"model_type": "rwkv6", "hidden_size": 128, "num_hidden_layers": 2, "head_size": 64, "vocab_size": 256}
        single, sharded = self.folder / "single", self.folder / "sharded"
        for folder in (single, sharded):
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(config))
        checkpoints.write_pth(single / "pytorch_model.bin", tensors)
        names, shards = list(tensors), [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
        for shard, part in zip(shards, (names[:20], names[20:])):
            checkpoints.write_pth(sharded / shard, {name: tensors[name] for name in part})
        index = sharded / "pytorch_model.bin.index.json"
        weight_map = {name: shards[number >= 20] for number, name in enumerate(names)}
        index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
        self.check_is_finch(single, single / "pytorch_model.bin", sharded, index)

    def test_prefixes_of_training_frameworks(self):
        tensors = checkpoints.read_pth(GOLDEN / "finch" / "model.pth")
        for prefix in ("_forward_module.", "module.", "model.", "_orig_mod.module."):
            path = self.folder / f"{prefix}pth"
            checkpoints.write_pth(path, {prefix + name: tensor for name, tensor in tensors.items()})
            self.check_is_finch(path)
