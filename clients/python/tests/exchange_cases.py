"""An exported context, read with the package safetensors from PyPI: any program with a reader of safetensors can."""

import pathlib
import subprocess
import sys
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[3]
# What coordinator/store/context_transfer_test.cc writes, byte for byte.
FILE = ROOT / "coordinator/store/testdata/context.safetensors"
PACKAGES = ["numpy==2.4.6", "safetensors==0.8.0"]


def fetched():
    """The folder of the packages within the environment, where it stays; None if they cannot be fetched."""
    folder = pathlib.Path(sys.prefix) / "safetensors-0.8.0"
    if not folder.is_dir():
        partial = folder.with_suffix(".partial")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        if subprocess.run([*pip, "--target", partial, *PACKAGES], capture_output=True).returncode != 0:
            return None
        partial.rename(folder)
    return folder


class ExchangeTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        folder = fetched()
        if folder is None:
            raise unittest.SkipTest(f"{' and '.join(PACKAGES)} are not there and cannot be fetched")
        sys.path.insert(0, str(folder))
        cls.addClassCleanup(sys.path.remove, str(folder))

    def test_tensors_and_metadata_of_an_exported_context(self):
        import numpy
        from safetensors import safe_open

        with safe_open(FILE, "numpy") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        self.assertEqual(metadata["goldfinch.context"], "1")
        self.assertEqual(metadata["cache_dtype"], "f16")
        position = int(metadata["position"])
        self.assertEqual(tensors["ids"].shape, (position,))
        self.assertEqual(tensors["ids"].dtype, numpy.uint16)
        self.assertTrue((tensors["ids"] < int(metadata["vocab_size"])).all())
        self.assertEqual(tensors["layers.1.rows"].shape, (position, 8))
        self.assertEqual(tensors["layers.1.rows"].dtype, numpy.float16)
        self.assertEqual(tensors["layers.0.wkv"].shape, (2, 8, 8))
        self.assertEqual(tensors["logits"].shape, (int(metadata["vocab_size"]),))
        for name, tensor in tensors.items():
            self.assertEqual(f"{crc32c(tensor.tobytes()):08x}", metadata[f"crc32c.{name}"], name)
            if tensor.dtype.kind == "f":
                self.assertTrue(numpy.isfinite(tensor).all(), name)


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


if __name__ == "__main__":
    unittest.main()
