#!/usr/bin/env python3
"""The model in PyTorch against a golden case. Skipped where there is no PyTorch."""

import ast
import pathlib
import struct
import sys
import unittest

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden/goldfinch"

try:
    import torch
except ImportError:
    torch = None
else:
    sys.path.insert(0, str(HERE))
    import torch_peer


def read_npy(path, kind):
    """A flat list of the numbers of a .npy file, and its shape."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<H", data, 8)
    header = ast.literal_eval(data[10 : 10 + length].decode("ascii"))
    numbers = struct.unpack_from(f"<{(len(data) - 10 - length) // 4}{kind}", data, 10 + length)
    return list(numbers), header["shape"]


@unittest.skipIf(torch is None, "no PyTorch here")
class TorchPeerTest(unittest.TestCase):
    def setUp(self):
        logits, shape = read_npy(GOLDEN / "logits.npy", "f")
        self.expected = torch.tensor(logits).reshape(shape)
        self.tokens = torch.tensor(read_npy(GOLDEN / "tokens.npy", "i")[0])[None]
        tensors = torch.load(GOLDEN / "model.pth", map_location="cpu")
        # As the golden logits were computed: chunks of the recurrence lose digits in fp32.
        self.peer = torch_peer.make_peer(tensors, "cpu", torch.float64)
        self.addCleanup(setattr, torch_peer, "CHUNK_TOKENS", torch_peer.CHUNK_TOKENS)

    def assert_near(self, ours, expected):
        self.assertLess(((ours - expected).norm() / expected.norm()).item(), 1e-5)

    def test_the_golden_logits(self):
        self.assert_near(self.peer.forward(self.tokens)[0], self.expected)

    def test_the_last_row_in_chunks_by_either_rule(self):
        for torch_peer.CHUNK_TOKENS in (7, 64, 8192):
            for every_layer in (True, False):
                with self.subTest(chunk_tokens=torch_peer.CHUNK_TOKENS, every_layer=every_layer):
                    self.assert_near(self.peer.last_logits(self.tokens, every_layer), self.expected[-1])

    def test_activations_of_bf16(self):
        tensors = torch.load(GOLDEN / "model.pth", map_location="cpu")
        peer = torch_peer.make_peer(tensors, "cpu", torch.bfloat16)
        ours = peer.last_logits(self.tokens, True).float()
        self.assertLess(((ours - self.expected[-1]).norm() / self.expected[-1].norm()).item(), 0.1)


if __name__ == "__main__":
    unittest.main()
