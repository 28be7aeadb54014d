"""GGUF's container and number formats, compared with the package `gguf` and a reference for ggml's K-quants."""

import struct

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from gpt_core import InputError
from gpt_core.formats.gguf.container import GGUF

rng = np.random.default_rng(0)


def write(path, values=None, **tensors):
    """Write a file with the metadata `values`; a tensor is an array, or a pair of raw rows and their format."""
    writer = gguf.GGUFWriter(path, "qwen3")
    for key, (value, *kinds) in (values or {}).items():
        writer.add_key_value(key, value, *kinds)
    for name, tensor in tensors.items():
        raw, kind = tensor if isinstance(tensor, tuple) else (tensor, None)
        writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_metadata_of_every_type_equal_those_of_the_package(tmp_path):
    t = gguf.GGUFValueType
    values = {
        "a.uint8": (200, t.UINT8), "a.int8": (-100, t.INT8), "a.uint16": (60000, t.UINT16), "a.int16": (-9, t.INT16),
        "a.uint32": (2**32 - 1, t.UINT32), "a.int32": (-5, t.INT32), "a.uint64": (2**63, t.UINT64),
        "a.int64": (-(2**40), t.INT64), "a.float32": (0.1, t.FLOAT32), "a.float64": (0.1, t.FLOAT64),
        "a.bool": (True, t.BOOL), "a.string": ("知 \n", t.STRING), "a.texts": (["", "é", "x y"], t.ARRAY, t.STRING),
        "a.numbers": ([1, 2, 300], t.ARRAY, t.INT32), "a.shares": ([0.5, 0.25], t.ARRAY, t.FLOAT32),
    }  # fmt: skip
    path = write(tmp_path / "a.gguf", values, w=np.arange(6, dtype=np.float32).reshape(2, 3))
    ours, theirs = GGUF(path), gguf.GGUFReader(path)
    expected = {key: f.contents() for key, f in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == expected
    assert ours.require("a.float64") == 0.1
    assert torch.equal(ours.tensor("w"), torch.arange(6.0).view(2, 3))
    with pytest.raises(InputError, match=r"lacks the metadata key a\.b"):
        ours.require("a.b")


@pytest.mark.parametrize(
    ("kind", "largest_error"),  # of values from -1 to 1, from the quantisation step
    [
        ("F32", 0),
        ("F16", 2**-11),
        ("BF16", 2**-8),
        ("Q8_0", 0.51 / 127),
        ("Q4_0", 1 / 8),
        ("Q4_1", 0.51 * 2 / 15),
    ],
)
def test_quantised_rows_are_within_the_quantisation_error(tmp_path, kind, largest_error):
    rows = rng.uniform(-1, 1, (5, 96)).astype(np.float32)
    raw = gguf.quants.quantize(rows, Kind[kind])
    file = GGUF(write(tmp_path / "a.gguf", before=rows[:1], w=(raw, Kind[kind]), after=rows[:3]))
    read = file.tensor("w")
    assert read.dtype == torch.float32
    assert file.tensor_infos["w"].kind.name == kind
    assert np.abs(read.numpy() - rows).max() <= largest_error
    assert torch.equal(file.tensor("after"), torch.from_numpy(rows[:3]))


def q4_k_by_hand(block: bytes) -> list[float]:
    """256 values: 8 groups of 32, each with a scale and an offset of 6 bits that are packed into 12 bytes."""
    d, d_min = np.frombuffer(block[:4], np.float16).astype(np.float64)
    packed, quants = block[4:16], block[16:]
    values = []
    for group in range(8):
        if group < 4:
            scale, offset = packed[group] & 63, packed[group + 4] & 63
        else:
            scale = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4
            offset = packed[group + 4] >> 4 | packed[group] >> 6 << 4
        for i in range(32):
            byte = quants[group // 2 * 32 + i]
            values.append(d * scale * (byte >> 4 if group % 2 else byte & 15) - d_min * offset)
    return values


def q6_k_by_hand(block: bytes) -> list[float]:
    """256 values of 6 bits: the low 4 in 128 bytes, the high 2 in 64, a scale of 8 bits for every 16."""
    low, high, scales = block[:128], block[128:192], np.frombuffer(block[192:208], np.int8)
    d = float(np.frombuffer(block[208:], np.float16)[0])
    values = []
    for i in range(256):
        half, place = divmod(i, 128)
        quarter, j = divmod(place, 32)
        four = low[half * 64 + quarter % 2 * 32 + j] >> (4 if quarter > 1 else 0) & 15
        two = high[half * 32 + j] >> 2 * quarter & 3
        values.append(d * scales[i // 16] * ((two << 4 | four) - 32))
    return values


@pytest.mark.parametrize(
    ("kind", "size", "by_hand"), [("Q4_K", 144, q4_k_by_hand), ("Q6_K", 210, q6_k_by_hand)]
)
def test_k_quants_equal_the_reference(tmp_path, kind, size, by_hand):
    raw = rng.integers(0, 256, (3, 2 * size), dtype=np.uint8)
    scale = np.frombuffer(np.float16([0.01, -0.003]).tobytes(), np.uint8)
    for block in raw.reshape(6, size):
        if kind == "Q4_K":
            block[:4] = scale
        else:
            block[208:] = scale[:2]
    read = GGUF(write(tmp_path / "a.gguf", w=(raw, Kind[kind]))).tensor("w")
    expected = [by_hand(block.tobytes()) for block in raw.reshape(6, size)]
    np.testing.assert_allclose(read.numpy().reshape(6, 256), expected, rtol=1e-5, atol=1e-6)


def test_an_unsupported_tensor_format_is_refused(tmp_path):
    path = write(tmp_path / "a.gguf", w=np.ones((2, 4), dtype=np.int32))
    with pytest.raises(InputError, match="holds w in the format I32, of rows of 4, which cannot be read"):
        GGUF(path).tensor("w")


def test_a_file_truncated_at_any_byte_is_refused(tmp_path):
    values = {"a.texts": (["x", "yz"], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING)}
    path = write(tmp_path / "a.gguf", values, v=np.ones((3, 5), np.float32), w=np.ones(4, np.float16))
    whole = path.read_bytes()
    end = GGUF(path).tensor_infos["w"].start + 8
    for size in range(end):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="is not a valid GGUF file"):
            GGUF(path)
    path.write_bytes(whole[:end])  # without the padding after the last tensor
    assert GGUF(path).tensor("w").tolist() == [1.0] * 4


HEADER = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
KEY = struct.pack("<Q", 1) + b"k"
TENSOR = b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"w"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "does not begin with GGUF"),
        (b"PK\x03\x04" + bytes(60), "does not begin with GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version is 1, expected 2 or 3"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version is 50331648"),
        (HEADER + KEY + struct.pack("<I", 77), "unknown kind 77"),
        (HEADER + KEY + struct.pack("<IIQ", 9, 4, 2**60), "is not a valid GGUF file"),
        (HEADER + KEY + struct.pack("<IIQ", 9, 8, 2**60), "is not a valid GGUF file"),
        (HEADER + KEY + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000, "is not a valid GGUF file"),
        (HEADER + KEY + struct.pack("<IQ", 8, 1) + b"\xff", "is not a valid GGUF file"),
        (TENSOR + struct.pack("<I", 9) + bytes(99), "its tensor w has 9 dimensions"),
        (TENSOR + struct.pack("<IQIQ", 1, 4, 99, 0), "unknown format 99"),
        (TENSOR + struct.pack("<IQQIQ", 2, 2**62, 2**62, 0, 0) + bytes(99), "ends before its tensor w"),
        (TENSOR + struct.pack("<IQIQ", 1, 4, 0, 2**63) + bytes(99), "ends before its tensor w"),
    ],
)  # fmt: skip
def test_invalid_gguf_files_are_refused(tmp_path, content, said):
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(InputError, match=said):
        GGUF(tmp_path / "a.gguf")
