"""goldfinch tokenize and detokenize."""

import ast
import json
import unittest

from program import DEMO_MODEL, PAGE, WORLD_VOCAB, ProgramTest, flags

TEXTS = ("", "a", "a\0b", " \n\t\r\n", "é€\U0001f600\u0301\ufeff", "And God said, Let there be light.")


def read_vocab(path):
    """{bytes: id} of a vocabulary file, read as its authors read it."""
    ids = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        token_id, rest = line.split(" ", 1)
        text = ast.literal_eval(rest.rsplit(" ", 1)[0])
        ids[text.encode() if isinstance(text, str) else text] = int(token_id)
    return ids


def longest_matches(text, ids):
    """The ids of the text, each time of the longest token that it goes on with."""
    longest = max(map(len, ids))
    found, begin = [], 0
    while begin < len(text):
        token = next(text[begin:end] for end in range(begin + longest, begin, -1) if text[begin:end] in ids)
        found.append(ids[token])
        begin += len(token)
    return found


class TokenizeTest(ProgramTest):
    def ids(self, text, **vocab):
        output = self.succeeds("tokenize", *flags(**vocab), stdin=text).stdout
        self.assertTrue(output.endswith(b"\n"))
        return [int(word) for word in output.split()]

    def check_round_trip(self, text, **vocab):
        output = self.succeeds("tokenize", *flags(**vocab), stdin=text).stdout
        self.assertEqual(self.succeeds("detokenize", *flags(**vocab), stdin=output).stdout, text)


class BytesTest(TokenizeTest):
    def test_round_trips(self):
        for text in (*TEXTS, PAGE * 20):
            with self.subTest(text[:20]):
                self.check_round_trip(text.encode(), vocab="bytes")

    def test_ids_are_bytes_and_one(self):
        for text in TEXTS:
            with self.subTest(text):
                expected = [byte + 1 for byte in text.encode()]
                self.assertEqual(self.ids(text.encode(), vocab="bytes"), expected)
                self.assertEqual(self.ids(text.encode(), model=DEMO_MODEL), expected)

    def test_text_from_flag_and_file(self):
        path = self.write("text.txt", "Hi")
        for source in ({"text": "Hi"}, {"file": path}):
            with self.subTest(source):
                self.assertEqual(self.succeeds("tokenize", *flags(vocab="bytes", **source)).stdout, b"73 106\n")
        path = self.write("ids.txt", "[73, 106]\n")
        for source in ({"text": "73 106"}, {"text": "73,\n106"}, {"file": path}):
            with self.subTest(source):
                self.assertEqual(self.succeeds("detokenize", *flags(vocab="bytes", **source)).stdout, b"Hi")

    def test_json(self):
        output = self.succeeds("tokenize", *flags(vocab="bytes", text="é", json=True)).stdout
        self.assertEqual(json.loads(output), {"ids": [0xC4, 0xAA], "tokens": 2, "bytes": 2})
        output = self.succeeds("detokenize", *flags(vocab="bytes", text="[196, 170]")).stdout
        self.assertEqual(output, "é".encode())

    def test_ids_of_any_bytes_decode(self):
        every = " ".join(str(token) for token in range(257))
        self.assertEqual(self.succeeds("detokenize", *flags(vocab="bytes", text=every)).stdout, bytes(range(256)))


@unittest.skipUnless(WORLD_VOCAB.exists(), f"no {WORLD_VOCAB}: ./dev test fetches it")
class WorldTest(TokenizeTest):
    def test_round_trip(self):
        self.check_round_trip(("".join(TEXTS) + PAGE * 20).encode(), vocab=WORLD_VOCAB)

    def test_ids_are_of_the_longest_matches(self):
        vocab = read_vocab(WORLD_VOCAB)
        for text in ("".join(TEXTS) + PAGE, "User: 你好,世界!\n\nAssistant: Здравствуй,   мир\n\n\n"):
            with self.subTest(text[:20]):
                self.assertEqual(self.ids(text.encode(), vocab=WORLD_VOCAB), longest_matches(text.encode(), vocab))

    def test_json(self):
        output = self.succeeds("tokenize", *flags(vocab=WORLD_VOCAB, json=True), stdin=PAGE.encode()).stdout
        said = json.loads(output)
        self.assertEqual((said["bytes"], said["tokens"]), (len(PAGE), len(said["ids"])))
        self.assertLess(said["tokens"], len(PAGE) / 3)
