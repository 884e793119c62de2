"""goldfinch generate: what it answers, and what each flag does to that."""

import json
import math
import re

import checkpoints
from program import DEMO_CONFIG, DEMO_MODEL, PAGE, ProgramTest, flags, generate

# As in the model's training task: tests/demo_model/recall_task.py.
FACTS = {"Kodaru": "41906", "Zelimo": "73520", "Vatuni": "88315"}
# 8 numbers, for int8 their scale, and an id of 2 bytes.
BYTES_PER_TOKEN = {"f32": 34, "f16": 18, "bf16": 18, "int8": 12}
TRANSFORMER_BYTES_PER_TOKEN = 6 * 2 * 128 * 2  # layers, keys and values, width, bf16


def fact(name):
    return f"The number of {name} is {FACTS[name]}.\n"


def question(name):
    return f"What is the number of {name}? "


# Two kilobytes, with a fact at the start, one in the middle, and one at the end. Longer would be slow with sanitizers.
HALF, END = (PAGE.index("\n", size) + 1 for size in (900, 1900))
DOCUMENT = fact("Kodaru") + PAGE[:HALF] + fact("Zelimo") + PAGE[HALF:END] + fact("Vatuni")

PROMPT = "And he said unto them, "


def cached_tokens(said):
    """The last token is not run, so it leaves nothing in the cache."""
    return said["prompt_tokens"] + max(0, len(said["tokens"]) - 1)


class GenerateTest(ProgramTest):
    def text(self, prompt=None, stdin=b"", **values):
        """What a run prints, without the line end that it adds."""
        output = self.succeeds(*generate(prompt, **values), stdin=stdin).stdout.decode()
        self.assertTrue(output.endswith("\n"), output)
        return output[:-1]

    def json(self, prompt=None, stdin=b"", **values):
        result = self.succeeds(*generate(prompt, **values, json=True), stdin=stdin)
        self.assertEqual(result.stderr, "")
        return json.loads(result.stdout)


class RecallTest(GenerateTest):
    def test_answers_from_start_middle_and_end_of_the_document_with_every_cache_type(self):
        for cache, name in zip(BYTES_PER_TOKEN, [*FACTS, "Zelimo"]):
            with self.subTest(name, cache=cache):
                said = self.json(DOCUMENT + question(name), max_tokens=5, cache_dtype=cache)
                self.assertEqual(said["text"], FACTS[name])
                self.assertEqual(said["cache_bytes"], cached_tokens(said) * BYTES_PER_TOKEN[cache])

    def test_chunks_of_the_prompt_change_nothing(self):
        prompt = DOCUMENT + question("Kodaru")
        sizes = (1, 7, 64, 512)
        texts = {size: self.text(prompt, max_tokens=8, max_num_batched_tokens=size) for size in sizes}
        self.assertEqual(len(set(texts.values())), 1, texts)
        self.assertTrue(texts[1].startswith(FACTS["Kodaru"]), texts)

    def test_threads_change_nothing(self):
        for threads in (0, 3):
            with self.subTest(threads):
                said = self.text(DOCUMENT[-300:] + question("Vatuni"), max_tokens=5, threads=threads)
                self.assertEqual(said, FACTS["Vatuni"])


class PromptTest(GenerateTest):
    def test_what_gold_layers_keep_changes_nothing(self):
        prompt = DOCUMENT + question("Zelimo")
        tiers = ("auto", "compressed", "shared", "full")
        texts = {tier: self.text(prompt, max_tokens=8, gold_tier=tier) for tier in tiers}
        self.assertEqual(len(set(texts.values())), 1, texts)

    def test_from_flag_file_and_standard_input(self):
        path = self.write("prompt.txt", PROMPT)
        expected = self.text(PROMPT, max_tokens=8)
        self.assertEqual(len(expected), 8)
        self.assertEqual(self.text(prompt_file=path, max_tokens=8), expected)
        self.assertEqual(self.text(stdin=PROMPT.encode(), max_tokens=8), expected)
        self.assertEqual(self.text(prompt_file="/dev/stdin", stdin=PROMPT.encode(), max_tokens=8), expected)

    def test_any_unicode(self):
        for prompt in ("-x", "--stop", "\0", "\ufeffé\u2028\U0001f600\U0010ffff"):
            with self.subTest(prompt):
                said = self.json(stdin=prompt.encode(), max_tokens=1)
                self.assertEqual(said["prompt_tokens"], len(prompt.encode()))
                if "\0" not in prompt:
                    self.assertEqual(self.json(prompt, max_tokens=1)["text"], said["text"])

    def test_chat_wraps_the_question_and_ends_at_an_empty_line(self):
        # This is no model of chat: it is made to say line ends.
        said = self.json("Who is\n\nit? \n", chat=True, logit_bias="11=100")
        self.assertEqual(said["prompt_tokens"], len("User: Who is\nit?\n\nAssistant:"))
        self.assertEqual((said["text"], said["finish_reason"], len(said["tokens"])), ("", "stop", 2))


class LengthTest(GenerateTest):
    def test_no_token_and_one(self):
        for count in (0, 1):
            with self.subTest(count):
                said = self.json(PROMPT, max_tokens=count)
                self.assertEqual((len(said["tokens"]), len(said["text"])), (count, count))
                self.assertEqual(said["finish_reason"], "length")
                self.assertEqual(self.text(PROMPT, max_tokens=count), said["text"])

    def test_prompt_and_output_may_fill_the_longest_sequence(self):
        said = self.json(PROMPT, max_tokens=4, max_model_len=len(PROMPT) + 4)
        self.assertEqual(len(said["tokens"]), 4)

    def test_the_default_length_is_cut_to_what_fits(self):
        said = self.json(PROMPT, max_model_len=len(PROMPT) + 4, ignore_eos=True)
        self.assertEqual(len(said["tokens"]), 4)

    def test_stop(self):
        prompt = fact("Kodaru") + question("Kodaru")
        answer = FACTS["Kodaru"]
        self.assertEqual(answer, "41906")
        for stops, text in (
            (["90"], "41"),
            (["4"], ""),
            (["x", "906", "19"], "4"),
            (["[06]"], answer),
            (["[9", "06"], "419"),
            (["067"], answer),
        ):
            with self.subTest(stops):
                said = self.json(prompt, max_tokens=5, stop=stops)
                reason = "length" if text == answer else "stop"
                self.assertEqual((said["text"], said["finish_reason"]), (text, reason))
                self.assertEqual(self.text(prompt, max_tokens=5, stop=stops), text)

    def test_token_0_ends_the_text_unless_ignored(self):
        end = {"max_tokens": 4, "logit_bias": "0=100"}
        said = self.json(PROMPT, **end)
        self.assertEqual((said["text"], said["finish_reason"]), ("", "end of text"))
        self.assertEqual([token["id"] for token in said["tokens"]], [0])
        self.assertEqual(self.text(PROMPT, **end), "")
        said = self.json(PROMPT, **end, ignore_eos=True)
        self.assertEqual((len(said["text"]), said["finish_reason"]), (4, "length"))


class SamplingTest(GenerateTest):
    WIDE = {"max_tokens": 32, "temperature": 1.5, "top_p": 1}

    def test_seed(self):
        first = self.text(PROMPT, seed=7, **self.WIDE)
        self.assertEqual(self.text(PROMPT, seed=7, **self.WIDE), first)
        self.assertEqual(self.text(PROMPT, seed=7, **self.WIDE, max_num_batched_tokens=5), first)
        texts = {first} | {self.text(PROMPT, seed=seed, **self.WIDE) for seed in (0, 8, 2**64 - 1)}
        self.assertEqual(len(texts), 4)

    def test_a_drawn_seed_is_told_and_repeats_the_text(self):
        said = self.json(PROMPT, **self.WIDE)
        self.assertEqual(self.json(PROMPT, seed=said["seed"], **self.WIDE)["text"], said["text"])
        self.assertNotEqual(self.json(PROMPT, **self.WIDE)["text"], said["text"])
        result = self.succeeds(*generate(PROMPT, **self.WIDE))
        seed = result.stderr.split("seed ")[1].split()[0]
        self.assertEqual(self.succeeds(*generate(PROMPT, seed=seed, **self.WIDE)).stdout, result.stdout)

    def test_one_token_is_left_to_draw_from(self):
        greedy = self.text(PROMPT, max_tokens=8)
        for limit in ({"top_k": 1}, {"top_p": 0}, {"min_p": 1}):
            with self.subTest(limit):
                self.assertEqual(self.text(PROMPT, **{**self.WIDE, **limit, "max_tokens": 8}), greedy)

    def test_penalties_forbid_what_was_said(self):
        for penalty in ("presence_penalty", "frequency_penalty"):
            with self.subTest(penalty):
                said = self.json(PROMPT, max_tokens=20, penalty_decay=1, **{penalty: 100})
                letters = [token["id"] for token in said["tokens"] if token["text"].isalnum()]
                self.assertEqual(len(set(letters)), len(letters))

    def test_ban(self):
        greedy = {token["id"] for token in self.json(PROMPT, max_tokens=8)["tokens"]}
        banned = sorted(greedy)[:2]
        said = self.json(PROMPT, max_tokens=8, ban=banned)
        self.assertFalse(set(banned) & {token["id"] for token in said["tokens"]})

    def test_logit_bias(self):
        said = self.json(PROMPT, max_tokens=3, logit_bias="91=100")
        self.assertEqual((said["text"], {token["id"] for token in said["tokens"]}), ("ZZZ", {91}))
        self.assertNotIn("Z", self.text(PROMPT, max_tokens=3, logit_bias=["91=100", "91=-100"]))


class OutputTest(GenerateTest):
    def test_text_on_standard_output_and_the_summary_on_standard_error(self):
        prompt = DOCUMENT[-1000:] + question("Vatuni")
        result = self.succeeds(*generate(prompt, max_tokens=5))
        self.assertEqual(result.stdout, f"{FACTS['Vatuni']}\n".encode())
        number = r"[\d.e+]+"
        self.assertRegex(
            result.stderr,
            rf"\Aprompt +{len(prompt):,} tokens in {number} s, {number} tokens/s\n"
            rf"output +5 tokens in {number} s, {number} tokens/s; ended by length; seed \d+\n"
            rf"cache +{number} kB; a transformer of this shape would have kept {number} MB\n\Z",
        )

    def test_json_adds_up(self):
        said = self.json(PROMPT, max_tokens=12, seed=5)
        self.assertEqual(said["prompt_tokens"], len(PROMPT))
        self.assertEqual(said["seed"], 5)
        self.assertEqual(len(said["tokens"]), 12)
        self.assertEqual("".join(token["text"] for token in said["tokens"]), said["text"])
        self.assertEqual([token["id"] for token in said["tokens"]], [byte + 1 for byte in said["text"].encode()])
        self.assertEqual(said["cache_bytes"], cached_tokens(said) * BYTES_PER_TOKEN["bf16"])
        self.assertEqual(said["transformer_cache_bytes"], cached_tokens(said) * TRANSFORMER_BYTES_PER_TOKEN)
        # What was set aside at the start: one sequence of --max-model-len, in pages of 64 tokens and one more.
        self.assertEqual(said["memory"]["compressed cache"], ((1 << 20) + 64) * BYTES_PER_TOKEN["bf16"])
        self.assertGreater(said["memory"]["weights"], 0)
        self.assertEqual(said["memory"]["channels"], 0)
        self.assertEqual(said["finish_reason"], "length")
        self.assertGreaterEqual(min(said["prefill_seconds"], said["decode_seconds"]), 0)
        self.assertNotIn("logprob", said["tokens"][0])

    def test_text_is_utf8_whatever_the_tokens(self):
        half_a_character = {"max_tokens": 2, "logit_bias": f"{0xC3 + 1}=100"}
        self.assertEqual(self.text(PROMPT, **half_a_character), "\ufffd\ufffd")
        self.assertEqual(self.json(PROMPT, **half_a_character)["text"], "\ufffd\ufffd")

    def test_logprobs(self):
        said = self.json(PROMPT, max_tokens=6, logprobs=3)
        for token in said["tokens"]:
            top = [entry["logprob"] for entry in token["top"]]
            self.assertEqual(len(top), 3)
            self.assertEqual(top, sorted(top, reverse=True))
            self.assertLessEqual(sum(map(math.exp, top)), 1 + 1e-6)
            self.assertEqual((token["top"][0]["id"], top[0]), (token["id"], token["logprob"]))
        token = self.json(PROMPT, max_tokens=1, logprobs=0)["tokens"][0]
        self.assertLess(token["logprob"], 0)
        self.assertNotIn("top", token)

    def test_logprobs_are_those_of_the_logits_command(self):
        said = self.json(PROMPT, max_tokens=6, logprobs=0, cache_dtype="f32")
        tokens = self.write_tokens([byte + 1 for byte in (PROMPT + said["text"]).encode()])
        out = self.folder / "logits.npy"
        self.succeeds("logits", *flags(model=DEMO_MODEL, tokens=tokens, out=out, cache_dtype="f32", threads=1))
        (_, vocab_size), logits = checkpoints.read_npy(out)
        for number, token in enumerate(said["tokens"]):
            position = len(PROMPT) - 1 + number
            row = logits[position * vocab_size : (position + 1) * vocab_size]
            expected = row[token["id"]] - math.log(sum(map(math.exp, row)))
            self.assertAlmostEqual(token["logprob"], expected, delta=1e-4)


class ModelFileTest(GenerateTest):
    def test_other_forms_of_the_same_model_say_the_same(self):
        tensors = checkpoints.read_pth(DEMO_MODEL)
        wide = {name: checkpoints.widened(tensor) for name, tensor in tensors.items()}
        models = {
            "folder": DEMO_MODEL.parent,
            "pth": checkpoints.write_pth(self.folder / "a.pth", tensors),
            "pth of f32": checkpoints.write_pth(self.folder / "b.pth", wide),
            "safetensors": checkpoints.write_safetensors(self.folder / "a.safetensors", tensors),
            "safetensors of f32": checkpoints.write_safetensors(self.folder / "b.safetensors", wide),
        }
        expected = self.text(PROMPT, max_tokens=16)
        for form, path in models.items():
            with self.subTest(form):
                self.assertEqual(self.text(PROMPT, model=path, config=DEMO_CONFIG, max_tokens=16), expected)

    def test_yaml_config(self):
        settings = self.write("model.yaml", "model:\n  n_layer: 6\n  n_embd: 128\n  vocab_size: 257\n")
        self.assertEqual(self.text(PROMPT, config=settings, max_tokens=8), self.text(PROMPT, max_tokens=8))

    def test_vocabulary_file(self):
        """One in which every byte has the id that it has in the model's own vocabulary."""
        lines = "".join(f"{byte + 1} b'\\x{byte:02x}' 1\n" for byte in range(256))
        vocab = self.write("vocab.txt", lines)
        self.assertEqual(self.text(PROMPT, vocab=vocab, max_tokens=8), self.text(PROMPT, max_tokens=8))


class HelpTest(ProgramTest):
    COMMANDS = [
        *"serve coordinator worker plan generate status load-test".split(),
        *"inspect quantize logits tokenize detokenize".split(),
    ]
    HEADINGS = [
        *"model prompt context pipeline device memory network security".split(),
        *"timeouts sampling load output other".split(),
    ]

    def test_help_is_on_standard_output(self):
        for command in ([], *([name] for name in self.COMMANDS)):
            with self.subTest(command):
                result = self.succeeds(*command, "--help")
                self.assertIn(b"Usage: goldfinch", result.stdout)
                self.assertEqual(result.stderr, "")

    def test_it_lists_every_command_with_its_purpose(self):
        text = self.succeeds("--help").stdout.decode()
        for command in self.COMMANDS:
            self.assertRegex(text, rf"\n  {command} +[A-Z][a-z]+ ")

    def test_every_flag_has_a_heading_and_a_phrase(self):
        for command in self.COMMANDS:
            with self.subTest(command):
                text = self.succeeds(command, "--help").stdout.decode()
                self.assertLessEqual(max(map(len, text.splitlines())), 100)
                # What CLI11 would write of types and ranges.
                self.assertNotRegex(text, r"\b(INT|UINT|FLOAT|POSITIVE|REQUIRED|OPTIONS)\b| in \[")
                blocks = text.split("\n\n")[2:]
                headings = [block.split("\n")[0] for block in blocks if "  -" in block]
                self.assertEqual(headings, [f"{name}:" for name in self.HEADINGS if f"{name}:" in headings])
                self.assertEqual(headings[-1], "other:")
                for flag in re.findall(r"\n  (-.*)", text):
                    self.assertRegex(flag, r"\A-[-\w, ]+?( [^ ]+)?( {2,}[A-Za-z].*)?\Z")

    def test_ranges_and_defaults_are_for_people(self):
        text = " ".join(self.succeeds("serve", "--help").stdout.decode().split())
        self.assertIn("Stages that the layers are split over, 1 to 1024 [default: 1]", text)
        self.assertIn("1 to 65536; auto is 256 on GPUs and 64 on CPUs, and fewer where memory is short [default: auto]",
                      text)
        self.assertIn("/readyz and /startupz, -1 to 65535; 0 takes any free one, -1 is none [default: 9090]", text)
        self.assertIn("Tokens that the caches of one pipeline hold, 1 to 68,719,476,736 [default: what memory", text)
        self.assertIn("take through all stages, 0 to 10,000,000; a long prompt", text)
        self.assertIn("from one worker to another, 0 to 1PiB, such as 64MiB or 4GiB [default: as measured;", text)
        self.assertNotIn("--port ", text)
        text = " ".join(self.succeeds("generate", "--help").stdout.decode().split())
        self.assertIn("0.0 to 1.0 [default: 0.85]", text)

    def test_flags_of_numbers_show_their_ranges(self):
        for command in self.COMMANDS:
            for flag in self.succeeds(command, "--help").stdout.decode().split("\n  -")[1:]:
                with self.subTest(command, flag=flag):
                    if re.match(r"[-\w, ]+? \[?(SECONDS|BYTES|MS|PORT)\b", flag):
                        self.assertRegex(" ".join(flag.split()), r"\d to [\d,]*\d(PiB)?\b")
