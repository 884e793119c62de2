"""goldfinch logits: the numbers of golden cases, out of a file and into one."""

import math

import checkpoints
from program import DEMO_MODEL, GOLDEN, ProgramTest, flags

FAMILIES = ("eagle", "finch", "finch_c2", "finch_c2_gptalpha", "finch_gold", "goldfinch", "gptalpha", "llama")


def relative_error(found, expected):
    """In the L2 norm."""
    difference = math.fsum((a - b) ** 2 for a, b in zip(found, expected))
    return math.sqrt(difference / math.fsum(b * b for b in expected))


class LogitsTest(ProgramTest):
    def logits(self, model, tokens, **values):
        out = self.folder / "logits.npy"
        result = self.succeeds("logits", *flags(model=model, tokens=tokens, out=out, threads=1, **values))
        self.assertEqual((result.stdout, result.stderr), (b"", ""))
        self.assertEqual([path for path in self.folder.iterdir() if path.name.startswith("logits")], [out])
        return checkpoints.read_npy(out)

    def check_golden(self, family, error_max, **values):
        folder = GOLDEN / family
        shape, found = self.logits(folder / "model.pth", folder / "tokens.npy", **values)
        expected_shape, expected = checkpoints.read_npy(folder / "logits.npy")
        self.assertEqual(shape, expected_shape)
        self.assertLessEqual(relative_error(found, expected), error_max)

    def test_families(self):
        for family in FAMILIES:
            with self.subTest(family):
                self.check_golden(family, 1e-5, cache_dtype="f32")

    def test_chunks(self):
        for size in (1, 7, 64, 512):
            with self.subTest(size):
                self.check_golden("goldfinch", 1e-5, cache_dtype="f32", max_num_batched_tokens=size)

    def test_narrow_caches(self):
        self.check_golden("goldfinch", 2e-3, cache_dtype="f16")
        self.check_golden("goldfinch", 2e-2, cache_dtype="bf16")

    def test_explicit_config(self):
        folder = GOLDEN / "llama"
        settings = self.write("c.json", '{"rope_base": 500}')
        _, changed = self.logits(folder / "model.pth", folder / "tokens.npy", config=settings)
        self.assertGreater(relative_error(changed, checkpoints.read_npy(folder / "logits.npy")[1]), 1e-3)

    def test_integers_of_every_kind(self):
        ids = [41, 2, 256, 0, 1]
        path = self.folder / "tokens.npy"
        shape, expected = self.logits(DEMO_MODEL, checkpoints.write_npy(path, ids))
        self.assertEqual(shape, (5, 257))
        for descr in ("<u2", "<i2", "<u4", "<i8", "<u8"):
            with self.subTest(descr):
                _, found = self.logits(DEMO_MODEL, checkpoints.write_npy(path, ids, descr))
                self.assertEqual(found, expected)
        with self.subTest("|u1"):
            _, found = self.logits(DEMO_MODEL, checkpoints.write_npy(path, ids[:2], "|u1"))
            self.assertEqual(found, expected[: 2 * 257])
        with self.subTest("one row"):
            shape, found = self.logits(DEMO_MODEL, checkpoints.write_npy(path, ids, shape=(1, 5)))
            self.assertEqual((shape, found), ((5, 257), expected))

    def test_out_replaces_a_file_and_no_link(self):
        tokens = self.write_tokens([1, 2])
        target = self.write("target.npy", "old")
        link = self.folder / "link.npy"
        link.symlink_to(target)
        self.succeeds("logits", *flags(model=DEMO_MODEL, tokens=tokens, out=link, threads=1))
        self.assertTrue(link.is_symlink())
        self.assertEqual(checkpoints.read_npy(target)[0], (2, 257))
