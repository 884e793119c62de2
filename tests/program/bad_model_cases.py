"""Models that are damaged, hostile, or none: each is refused in one line that names the file and what is wrong."""

import json
import re
import zipfile

import checkpoints
from checkpoints import Tensor
from program import DEMO_CONFIG, DEMO_MODEL, ProgramTest, flags, generate, listed, run

KEY = "blocks.2.att.key.weight"


class ModelTest(ProgramTest):
    @classmethod
    def setUpClass(cls):
        cls.tensors = checkpoints.read_pth(DEMO_MODEL)

    def arguments(self, model, **values):
        return generate("And ", model=model, config=DEMO_CONFIG, max_tokens=2, **values)

    def refuses_model(self, model, says, **values):
        self.refuses(*self.arguments(model, **values), says=[model, *listed(says)])

    def refuses_tensors(self, tensors, says):
        path = checkpoints.write_safetensors(self.folder / "model.safetensors", tensors)
        self.refuses_model(path, says)
        self.refuses("inspect", path, says=[path, *listed(says)])


class FileTest(ModelTest):
    def test_no_model(self):
        self.refuses_model(self.folder / "none.pth", "No such file or directory")
        self.refuses_model(self.folder, "holds no .pth, no .safetensors and no pytorch_model.bin file")
        self.refuses_model("/dev/zero", "is not a regular file")
        self.refuses_model(self.write("empty.pth", ""), "is empty")
        text = self.write("text.pth", "Not a model\n\x1b[31m")
        self.refuses_model(text, r"is neither .pth nor safetensors: it begins with 'Not a model\n\x1b[31'")
        self.refuses("inspect", self.folder / "none.pth", says="none.pth: No such file or directory")
        self.refuses("inspect", text, says="is neither .pth nor safetensors")

    def test_two_models(self):
        self.write("a.pth", "")
        self.write("b.safetensors", "")
        self.refuses_model(self.folder, ["holds 2 models", "a.pth", "b.safetensors", "name one"])

    def test_name_with_line_end(self):
        self.refuses("inspect", self.folder / "two\nlines\x1b[31m", says=r"two\x0alines\x1b[31m: No such file")

    def test_truncated_pth(self):
        whole = DEMO_MODEL.read_bytes()
        for size in (1, 2, 4, 30, 10_000, len(whole) // 2, len(whole) - 22, len(whole) - 1):
            with self.subTest(size):
                says = "is neither .pth" if size == 1 else "cut short?"
                self.refuses_model(self.write("model.pth", whole[:size]), says)

    def test_truncated_safetensors(self):
        whole = checkpoints.write_safetensors(self.folder / "whole", self.tensors).read_bytes()
        header_bytes = 8 + int.from_bytes(whole[:8], "little")
        for size in (1, 8, 9, 1000, header_bytes - 1, header_bytes, len(whole) // 2, len(whole) - 1):
            with self.subTest(size):
                says = "is neither .pth" if size <= 8 else "cut short"
                self.refuses_model(self.write("model.safetensors", whole[:size]), says)

    def test_bytes_behind_the_end(self):
        self.refuses_model(self.write("a.pth", DEMO_MODEL.read_bytes() + b"\0"), "zip")
        whole = checkpoints.write_safetensors(self.folder / "whole", self.tensors).read_bytes()
        self.refuses_model(self.write("b.safetensors", whole + b"\0"), "no tensor has those from")


class OtherVersionTest(ModelTest):
    """Files of other versions of RWKV, and parts of models: the message says what they are and what to do."""

    def refuses_names(self, shapes, says):
        width, att = 128, "blocks.0.att."
        model = {"emb.weight": (256, width), "ln_out.weight": (width,), "head.weight": (256, width)}
        model |= {f"{att}{name}.weight": (width, width) for name in ("key", "value", "receptance", "output")}
        model = shapes if all(name.endswith("time_state") for name in shapes) else {**model, **shapes}
        path = self.folder / "other.pth"
        checkpoints.write_pth(path, {name: checkpoints.zeros(shape) for name, shape in model.items()})
        self.refuses_model(path, says)
        self.refuses("inspect", path, says=[path, *listed(says)])

    def test_rwkv_4(self):
        shapes = {"blocks.0.att.time_decay": (128,), "blocks.0.att.time_first": (128,)}
        shapes |= {f"blocks.0.att.time_mix_{x}": (1, 1, 128) for x in "kvr"}
        self.refuses_names(shapes, ["is an RWKV-4 model", "take a Finch"])

    def test_rwkv_7(self):
        shapes = {f"blocks.0.att.{x}": (1, 1, 128) for x in "x_r x_w x_k x_v x_a x_g w0 a0 v0 k_k k_a".split()}
        self.refuses_names({**shapes, "blocks.0.att.r_k": (2, 64)}, ["is an RWKV-7 (Goose) model", "take a Finch"])

    def test_a_state_alone(self):
        shapes = {f"blocks.{layer}.att.time_state": (2, 64, 64) for layer in range(2)}
        self.refuses_names(shapes, ["holds a tuned initial state", "use it as a context"])


class DamageTest(ModelTest):
    def damaged(self, name, offset):
        """The demo model with one bit of a tensor turned over."""
        content = bytearray(DEMO_MODEL.read_bytes())
        content[content.index(self.tensors[name].data) + offset] ^= 1
        return self.write("damaged.pth", bytes(content))

    def test_bit_flips_in_weights(self):
        for name, offset in ((KEY, 0), ("emb.weight", 1001), ("head.weight", 257 * 128 * 2 - 1)):
            with self.subTest(name):
                path = self.damaged(name, offset)
                self.refuses_model(path, [f"(tensor '{name}') is damaged", "CRC-32"])
                self.refuses("logits", *flags(model=path, tokens=self.write_tokens([1]), out=self.folder / "l.npy"),
                             says=name)

    def test_weights_without_checksums_can_be_used(self):
        path = self.damaged(KEY, 0)
        for verify in ("finite", "none"):
            with self.subTest(verify):
                result = self.succeeds(*self.arguments(path, verify=verify))
                self.assertNotIn("goldfinch:", result.stderr)

    def test_bit_flips_in_the_pickle(self):
        content = DEMO_MODEL.read_bytes()
        with zipfile.ZipFile(DEMO_MODEL) as archive:
            pickled = next(archive.read(name) for name in archive.namelist() if name.endswith("/data.pkl"))
        for offset in (0, len(pickled) // 2, len(pickled) - 1):
            with self.subTest(offset):
                flipped = bytearray(content)
                flipped[content.index(pickled) + offset] ^= 4
                self.refuses_model(self.write("damaged.pth", bytes(flipped)), ["data.pkl' is damaged", "CRC-32"])

    def test_nan_and_infinite_weights_are_a_warning(self):
        """The program goes on: the embedding is of a token that is not used, or its logits are what was asked for."""
        for bits in (checkpoints.BF16_NAN, checkpoints.BF16_INFINITY):
            tensor = checkpoints.with_element(self.tensors["emb.weight"], 250 * 128, bits)
            path = checkpoints.write_pth(self.folder / "nan.pth", {**self.tensors, "emb.weight": tensor})
            with self.subTest(bits):
                result = self.succeeds(*self.arguments(path))
                warning = f"goldfinch: warning: {path}: tensor emb.weight has values that are NaN or infinite\n"
                self.assertTrue(result.stderr.startswith(warning), result)
                self.assertEqual(result.stderr.count("goldfinch:"), 1)
                tokens = self.write_tokens([1, 250])
                result = self.succeeds("logits", *flags(model=path, tokens=tokens, out=self.folder / "logits.npy"))
                self.assertEqual(result.stderr, warning)
                self.assertNotIn("warning", self.succeeds(*self.arguments(path, verify="none")).stderr)

    def test_nothing_is_drawn_from_logits_that_are_not_numbers(self):
        tensor = checkpoints.with_element(self.tensors[KEY], 0, checkpoints.BF16_NAN)
        path = checkpoints.write_pth(self.folder / "nan.pth", {**self.tensors, KEY: tensor})
        result = run(*self.arguments(path))
        self.assertEqual((result.code, result.stdout), (1, b""))
        warning, error = result.stderr.splitlines()
        self.assertIn(f"warning: {path}: tensor {KEY} has values", warning)
        self.assertRegex(error, "^goldfinch: logit 0 of position 4 is -?nan, it must be finite$")


class PickleTest(ModelTest):
    def test_imports_are_refused_by_name_and_nothing_is_run(self):
        witness = self.folder / "witness"
        for module, name, shown in (
            ("os", "system", "os.system"),
            ("posix", "system", "posix.system"),
            ("builtins", "eval", "builtins.eval"),
            ("torch", "load", "torch.load"),
            ("\x1b[31m", "\r", r"\x1b[31m.\r"),
        ):
            with self.subTest(shown):
                call = checkpoints.call_pickle(module, name, f"touch {witness}")
                pickled = checkpoints.state_dict_pickle(self.tensors, before=call)
                path = checkpoints.write_pth(self.folder / "evil.pth", self.tensors, pickled)
                self.refuses_model(path, f"the pickle imports '{shown}', which is not allowed")
                self.assertFalse(witness.exists())

    def test_other_pickles(self):
        for name, pickled, says in (
            ("number", b"\x80\x02K\x01.", "int"),
            ("nothing", b"", "cut short"),
            ("list", b"\x80\x02].", "list"),
            ("empty dict", b"\x80\x02}.", "holds no tensor"),
            ("old protocol", b"(dp0\n.", "opcode 0x64"),
            ("no end", checkpoints.state_dict_pickle(self.tensors)[:-1], "cut short"),
        ):
            with self.subTest(name):
                self.refuses_model(checkpoints.write_pth(self.folder / "model.pth", self.tensors, pickled), says)

    def test_storages(self):
        pickled = checkpoints.state_dict_pickle(self.tensors)
        fewer = dict(list(self.tensors.items())[:-1])
        last = list(self.tensors)[-1]
        shorter = {**self.tensors, last: Tensor("bf16", (2, 2), bytes(8))}
        for tensors, says in ((fewer, "is not in the archive"), (shorter, "has 8 bytes")):
            with self.subTest(says):
                self.refuses_model(checkpoints.write_pth(self.folder / "model.pth", tensors, pickled), [last, says])


class TensorTest(ModelTest):
    def test_missing(self):
        for name in (
            "emb.weight",
            "head.weight",
            "ln_out.bias",
            "blocks.0.ln0.weight",
            KEY,
            "blocks.4.att.time_maa_kv_w2",
            "blocks.5.ffn.value.weight",
            "w_kv_cache_a.weight",
            "w_kv_cache_b.weight",
        ):
            with self.subTest(name):
                tensors = {other: tensor for other, tensor in self.tensors.items() if other != name}
                self.refuses_tensors(tensors, f"tensor {name} is missing")
        no_layer = {name: tensor for name, tensor in self.tensors.items() if not name.startswith("blocks.3.")}
        self.refuses_tensors(no_layer, "layer 3 (tensors blocks.3.att.*) is of no known kind")

    def test_extra(self):
        for name in ("blocks.2.att.extra", "blocks.0.ffn.key.weight2", "extra.weight", "w_kv_cache_c.weight"):
            with self.subTest(name):
                self.refuses_with(name, f"tensor {name} belongs to no layer")
        self.refuses_with("blocks.6.att.key.weight", "layer 6 (tensors blocks.6.att.*) is of no known kind")
        for name in ("blocks.x.att.key", "blocks.-1.att.key", "blocks.1000.att.key", "blocks.99999999999.att.key"):
            with self.subTest(name):
                self.refuses_with(name, [name, "0 to 999"])
        self.refuses_with("two\nlines\x1b[31m", r"tensor two\x0alines\x1b[31m belongs to no layer")

    def refuses_with(self, name, says):
        """With one tensor more."""
        self.refuses_tensors({**self.tensors, name: checkpoints.zeros((2,))}, says)

    def test_shapes(self):
        for name, shape, says in (
            ("emb.weight", (257,), "[257], expected [vocab, width]"),
            ("emb.weight", (257, 64), "64"),
            ("head.weight", (256, 128), "[256, 128], expected [257, 128]"),
            ("head.weight", (257, 128, 1), "[257, 128, 1], expected [257, 128]"),
            (KEY, (128, 129), "[128, 129], expected [128, 128]"),
            (KEY, (1,), "[1], expected [128, 128]"),
            ("blocks.1.ln1.weight", (127,), "[127], expected 128 elements"),
            ("blocks.0.ffn.value.weight", (128, 447), "[128, 447], expected [128, 448]"),
            ("w_kv_cache_b.weight", (128, 135), "[128, 135], expected [128, 136]"),
            ("w_kv_cache_a.weight", (9, 128), "w_kv_cache_b.weight is [128, 136], expected [128, 137]"),
            ("blocks.0.att.time_maa_w2", (5, 31, 128), "time_maa_w1 is [128, 160], expected [128, 155]"),
            ("blocks.3.att.time_decay_w1", (128, 63), "time_decay_w2 is [64, 128], expected [63, 128]"),
        ):
            with self.subTest(name, shape=shape):
                self.refuses_tensors({**self.tensors, name: checkpoints.zeros(shape)}, says)

    def test_layers_out_of_order(self):
        exchanged = {"3": "4", "4": "3"}
        swapped = {
            re.sub(r"(?<=^blocks\.)[34]", lambda layer: exchanged[layer[0]], name): tensor
            for name, tensor in self.tensors.items()
        }
        self.refuses_tensors(swapped, "layer 4 is finch_c2 after the gold layer 3")


class SafetensorsTest(ModelTest):
    def refuses_header(self, change, says):
        header = checkpoints.safetensors_header(self.tensors)
        change(header)
        self.refuses_model(checkpoints.write_safetensors(self.folder / "m.safetensors", self.tensors, header), says)

    def test_offsets(self):
        begin, end = checkpoints.safetensors_header(self.tensors)[KEY]["data_offsets"]
        for offsets, says in (
            ([begin - 2, end - 2], "overlap"),
            ([begin, end + 2], "overlap"),
            ([begin + 2, end], "nothing fills the bytes"),
            ([end, begin], "run backwards"),
            ([begin, 1 << 62], "cut short?"),
            ([begin, (1 << 64) - 1], "cut short?"),
            ([begin], "needs dtype, shape and two data_offsets"),
        ):
            with self.subTest(offsets):
                self.refuses_header(lambda header, o=offsets: header[KEY].update(data_offsets=o), ["tensor '", says])

    def test_fields(self):
        for field, value, says in (
            ("dtype", "I64", "dtype 'I64'"),
            ("dtype", "F32", "but its shape has 16384 elements of 4 bytes"),
            ("shape", [128, 127], "but its shape has 16256 elements of 2 bytes"),
            ("shape", [1 << 40, 1 << 40], "overflows"),
            ("shape", [-128, -128], "negative number, -128"),
            ("shape", [128.5, 128], "'128.5', not an integer"),
            ("shape", "big", "a string at shape, expected an array"),
        ):
            with self.subTest(field, value=value):
                change = {field: value}
                self.refuses_header(lambda header, c=change: header[KEY].update(c), [f"tensor '{KEY}'", says])

    def test_headers(self):
        number = "a number at 'a', expected an object"
        for header, says in (([], "neither"), ({}, "holds no tensor"), ({"a": 1}, number)):
            with self.subTest(header):
                self.refuses_header_text(json.dumps(header), says)
        self.refuses_header_text('{"a":' + "[" * 100_000, "an array at 'a', expected an object")
        self.refuses_header_text('{"a', "not valid JSON")

    def refuses_header_text(self, text, says):
        content = len(text).to_bytes(8, "little") + text.encode()
        self.refuses_model(self.write("model.safetensors", content), says)

    def test_header_of_any_length(self):
        self.refuses_model(self.write("m.safetensors", b"\xff" * 7 + b"\x7f{}"), "the limit is 100000000")
        self.refuses_model(self.write("m.safetensors", (64).to_bytes(8, "little") + b"{}"), "cut short")


class ConfigTest(ModelTest):
    def refuses_config(self, text, says, name="config.json"):
        path = self.write(name, text)
        self.refuses(*generate("And ", config=path, max_tokens=1), says=says)

    def test_contradictions(self):
        for key, value, found in (
            ("n_layer", 7, 6),
            ("n_embd", 64, 128),
            ("vocab_size", 256, 257),
            ("head_size", 32, 64),
        ):
            says = [DEMO_MODEL, f"the config says {key} is {value}, the tensors say {found}"]
            with self.subTest(key):
                self.refuses_config(json.dumps({key: value}), says)
                self.refuses_config(f"model:\n  {key}: {value}\n", says, "config.yaml")
                self.refuses("inspect", DEMO_MODEL, "--config", self.folder / "config.json", says=says)

    def test_kinds_of_layers(self):
        for key, value, found in (("tmix", "x052", "x060c2"), ("tmix2", "gptalpha", "gold")):
            with self.subTest(key):
                says = f"the config says {key} is {value}, the tensors are of {found}"
                self.refuses_config(json.dumps({key: value}), [DEMO_MODEL, says])

    def test_values(self):
        for key, value in (
            ("n_layer", 0),
            ("n_layer", 1e300),
            ("n_layer", "six"),
            ("n_layer", 6.5),
            ("head_size", 60),
            ("rope_base", -1),
            ("use_v2", "maybe"),
            ("vocabulary", "klingon"),
            ("vocabulary", None),
        ):
            with self.subTest(key, value=value):
                self.refuses_config(json.dumps({key: value}), ["config.json: ", f"{key} is {json.dumps(value)[:4]}"])

    def test_malformed_json(self):
        for text in ("", "{", "[1, 2]", "null", "\xff", '{"n_layer": 6', "[" * 100_000, '{"n_layer": "\xff"}'):
            with self.subTest(text[:20]):
                self.refuses_config(text.encode("latin-1"), "config.json: ")
        self.refuses_config(" " * (1 << 20) + "{}", "config.json: more than 1048576 bytes")

    def test_nested_json(self):
        """Down to as deep as a config may be long."""
        for depth in (1, 500_000):
            nested = "[" * depth + "]" * depth
            for key in ("n_layer", "vocabulary", "rope_base"):
                with self.subTest(key, depth=depth):
                    self.refuses_config(f'{{"{key}": {nested}}}', ["config.json: ", f"{key} is "])

    def test_malformed_yaml(self):
        for text in ("", "6", "- 6", "model: [", "model:\n\tn_layer: 6", "[" * 100_000, "{a: " * 100_000, "a: &a [*b]"):
            with self.subTest(text[:20]):
                self.refuses_config(text, "config.yaml: ", "config.yaml")

    def test_yaml_that_is_not_utf8(self):
        for key in ("n_layer", "vocabulary"):
            with self.subTest(key):
                self.refuses_config(f"{key}: \xff".encode("latin-1"), ["config.yaml: ", key], "config.yaml")

    def test_no_config(self):
        self.refuses(*generate("And ", config=self.folder / "none.json"), says="none.json: cannot be read")
        self.refuses(*generate("And ", config=self.folder), says=str(self.folder))

    def test_config_beside_the_model(self):
        self.write("config.json", '{"n_layer": 7}')
        path = checkpoints.write_pth(self.folder / "model.pth", self.tensors)
        self.refuses(*generate("And ", model=path), says="the config says n_layer is 7, the tensors say 6")


class VocabularyTest(ModelTest):
    BYTES = "".join(f"{byte + 1} b'\\x{byte:02x}' 1\n" for byte in range(256))

    def refuses_vocab(self, text, says):
        path = self.write("vocab.txt", text)
        self.refuses("tokenize", *flags(vocab=path, text="And"), says=[path, *listed(says)])
        self.refuses(*generate("And ", vocab=path), says=path)

    def test_lines(self):
        for line, says in (
            ("257 'the' 4", ["3", "4"]),
            ("257 'é' 1", ["2", "1"]),
            ("257 'the'", ""),
            ("257 the 3", "literal"),
            ("257 'the 3", "quote"),
            ("1 'the' 3", "1"),
            ("257 'a' 1", ""),
            ("0 'the' 3", "0"),
            ("65536 'the' 3", "65536"),
            ("-1 'the' 3", "-1"),
            ("257 '' 0", ""),
            ("257 b'\\xg0' 1", ""),
            ("257 '\\ud800' 3", ""),
            (f"257 '{'x' * 129}' 129", "129"),
            ("257 'the' 3 4", ""),
            ("257 __import__('os').system('true') 3", "literal"),
        ):
            with self.subTest(line):
                self.refuses_vocab(f"{self.BYTES}{line}\n", ["257", *listed(says)])

    def test_files(self):
        self.refuses_vocab("", "")
        self.refuses_vocab(self.BYTES.replace("66 b'\\x41' 1\n", ""), "")
        self.refuses_vocab(b"\xff\xfe\0", "")
        self.refuses("tokenize", *flags(vocab=self.folder / "none", text="a"), says="none: No such file or directory")
        self.refuses("tokenize", *flags(vocab=self.folder, text="a"), says=f"{self.folder}: Is a directory")
        self.refuses("tokenize", *flags(vocab="/dev/zero", text="a"), says="/dev/zero: larger than")

    def test_more_tokens_than_the_model_has(self):
        path = self.write("vocab.txt", f"{self.BYTES}300 'the' 3\n")
        self.refuses(*generate("And ", vocab=path), says=[path, "ids up to 300", "the model has only 257 ids"])

    def test_none_for_a_world_model(self):
        path = self.write("config.json", '{"vocabulary": "world"}')
        says = [DEMO_MODEL, "--vocab", "rwkv_vocab_v20230424.txt"]
        self.refuses(*generate("And ", config=path), says=says)
