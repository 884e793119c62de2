"""Reads and writes checkpoint files with the standard library alone, so that tests can get anything wrong in them."""

import ast
import collections
import json
import pickle
import struct
import zipfile

# Bits of a bf16 number.
BF16_NAN = 0x7FC0
BF16_INFINITY = 0x7F80

STORAGE_CLASSES = {"f32": "FloatStorage", "f16": "HalfStorage", "bf16": "BFloat16Storage"}
SAFETENSORS_TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
ELEMENT_BYTES = {"f32": 4, "f16": 2, "bf16": 2}

Tensor = collections.namedtuple("Tensor", "dtype shape data")  # dtype "bf16", shape (257, 128), little-endian bytes


def count(shape):
    elements = 1
    for size in shape:
        elements *= size
    return elements


def zeros(shape, dtype="bf16"):
    return Tensor(dtype, tuple(shape), bytes(count(shape) * ELEMENT_BYTES[dtype]))


def with_element(tensor, index, bits):
    """The bf16 tensor with other bits in one element."""
    begin = index * 2
    return tensor._replace(data=tensor.data[:begin] + struct.pack("<H", bits) + tensor.data[begin + 2 :])


def widened(tensor):
    """The bf16 tensor as f32."""
    bits = struct.unpack(f"<{len(tensor.data) // 2}H", tensor.data)
    return tensor._replace(dtype="f32", data=struct.pack(f"<{len(bits)}I", *(half << 16 for half in bits)))


# ---- .pth: a zip archive of a pickle and of the bytes of each storage ----


class _StateDictUnpickler(pickle.Unpickler):
    """Knows what a plain state dict imports, and no more."""

    def __init__(self, archive):
        self._archive = archive
        self._prefix = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
        super().__init__(archive.open(self._prefix + "data.pkl"))

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, *_: self._tensor(*storage, offset, tuple(shape))
        dtypes = {storage: dtype for dtype, storage in STORAGE_CLASSES.items()}
        return dtypes[name]

    def persistent_load(self, pid):
        _, dtype, key, _, _ = pid
        return dtype, self._archive.read(f"{self._prefix}data/{key}")

    @staticmethod
    def _tensor(dtype, storage, offset, shape):
        size = ELEMENT_BYTES[dtype]
        return Tensor(dtype, shape, storage[offset * size : (offset + count(shape)) * size])


def read_pth(path):
    """{name: Tensor}, of contiguous tensors."""
    with zipfile.ZipFile(path) as archive:
        return _StateDictUnpickler(archive).load()


def _string(text):
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value):
    return b"J" + struct.pack("<i", value)


def _shape(sizes):
    return b"(" + b"".join(_integer(size) for size in sizes) + b"t"


def _import(module, name):
    return f"c{module}\n{name}\n".encode()


def _strides(shape):
    return [count(shape[axis + 1 :]) for axis in range(len(shape))]


def _pickled_tensor(key, tensor):
    storage = (
        b"(" + _string("storage") + _import("torch", STORAGE_CLASSES[tensor.dtype]) + _string(key) + _string("cpu")
    ) + (_integer(len(tensor.data) // ELEMENT_BYTES[tensor.dtype]) + b"tQ")
    arguments = storage + _integer(0) + _shape(tensor.shape) + _shape(_strides(tensor.shape)) + b"\x89" + b"}"
    return _import("torch._utils", "_rebuild_tensor_v2") + b"(" + arguments + b"tR"


def state_dict_pickle(tensors, before=b""):
    """The pickle of a dict of tensors, whose storages are named by their number; `before` runs first."""
    items = b"".join(
        _string(name) + _pickled_tensor(str(number), tensor) for number, (name, tensor) in enumerate(tensors.items())
    )
    return b"\x80\x02" + before + b"}(" + items + b"u."


def call_pickle(module, name, argument):
    """Opcodes that import module.name and call it, leaving nothing on the stack."""
    return _import(module, name) + _string(argument) + b"\x85R0"


def write_pth(path, tensors, pickled=None):
    """A file as torch.save writes it; `pickled` instead of the right pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", state_dict_pickle(tensors) if pickled is None else pickled)
        for number, tensor in enumerate(tensors.values()):
            archive.writestr(f"model/data/{number}", tensor.data)
    return path


# ---- safetensors: the length of a JSON header, the header, the bytes of all tensors ----


def safetensors_header(tensors):
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + len(tensor.data)
        dtype = SAFETENSORS_TYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [begin, end]}
    return header


def write_safetensors(path, tensors, header=None):
    """`header` instead of the right one."""
    text = json.dumps(safetensors_header(tensors) if header is None else header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensor.data for tensor in tensors.values()))
    return path


# ---- .npy ----

_NPY_MAGIC = b"\x93NUMPY\x01\x00"


def write_npy(path, values, descr="<i4", shape=None):
    """Integers."""
    code = {"|u1": "B", "<u2": "H", "<i2": "h", "<u4": "I", "<i4": "i", "<i8": "q", "<u8": "Q", "<f4": "f"}[descr]
    shape = (len(values),) if shape is None else shape
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}"
    header = header.ljust(-(-(len(header) + 11) // 64) * 64 - 11) + "\n"
    data = struct.pack(f"<{len(values)}{code}", *values)
    path.write_bytes(_NPY_MAGIC + struct.pack("<H", len(header)) + header.encode() + data)
    return path


def read_npy(path):
    """(shape, numbers) of an int32 or float32 array of version 1."""
    content = path.read_bytes()
    if not content.startswith(_NPY_MAGIC):
        raise ValueError(f"{path}: not a .npy file of version 1")
    (header_bytes,) = struct.unpack_from("<H", content, 8)
    fields = ast.literal_eval(content[10 : 10 + header_bytes].decode())
    code = {"<i4": "i", "<f4": "f"}[fields["descr"]]
    if fields["fortran_order"]:
        raise ValueError(f"{path}: in Fortran order")
    return fields["shape"], memoryview(content)[10 + header_bytes :].cast(code)
