"""Pickles: supported contents; damaged and malicious files are refused with a one-sentence error."""

import os
import pickle
import random

import pytest
import torch

from gpt_core.common.errors import InputError
from gpt_core.formats.pickles import read_bin, read_plain_pickle

STATE = {
    "a": torch.arange(20.0).view(4, 5),
    "b": torch.ones(3, dtype=torch.bfloat16),
    "c": torch.tensor(-1e4),
}


class Payload:
    """An object that runs a command when it is unpickled."""

    def __init__(self, canary):
        self.command = f"touch {canary}"

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_both_file_formats_are_read(tmp_path, zipped):
    torch.save(STATE, tmp_path / "x.bin", _use_new_zipfile_serialization=zipped)
    read = read_bin(tmp_path / "x.bin")
    assert read.keys() == STATE.keys()
    assert all(torch.equal(read[k], STATE[k]) and read[k].dtype == STATE[k].dtype for k in STATE)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_is_named_and_not_run(tmp_path, zipped):
    path = tmp_path / "pytorch_model.bin"
    for content in (STATE | {"x": Payload(tmp_path / "canary")}, Payload(tmp_path / "canary")):
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(
            InputError, match=r"refers to posix\.system, which is neither a tensor nor a plain value"
        ):
            read_bin(path)
    torch.save(torch.nn.Linear(2, 2), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"refers to torch\.nn\.modules\.linear\.Linear"):
        read_bin(path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("content", [[STATE], {"a": 1}, {1: STATE["a"]}, {"model": STATE}, STATE["a"]])
def test_files_of_anything_but_named_tensors_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.bin")
    with pytest.raises(InputError, match="is not a table of named tensors"):
        read_bin(tmp_path / "x.bin")


def test_files_that_are_no_checkpoints_are_refused(tmp_path):
    path = tmp_path / "x.bin"
    for content in (b"", b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\n", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"is damaged, or not a file of torch\.save"):
            read_bin(path)
    for absent, reason in (("y.bin", "No such file"), (".", "Is a directory")):
        with pytest.raises(InputError, match=f"cannot be read: {reason}"):
            read_bin(tmp_path / absent)


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_and_altered_files_give_tensors_or_input_error(tmp_path, zipped):
    path = tmp_path / "x.bin"
    torch.save(STATE, path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    draw = random.Random(0)
    refused = 0
    for i in range(150):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged[: draw.randrange(len(damaged))] if i % 3 == 0 else damaged)
        try:
            read_bin(path)
        except InputError:
            refused += 1
    assert refused >= 50  # every third file was truncated


def test_plain_pickles_of_every_protocol_are_read(tmp_path):
    content = {
        "n": 3,
        "stoi": {"a": 0, "知": -1, "🙂": 2**70},
        "list": [1.5, None, True, (1, "x"), ()],
        "e": {},
    }
    content["self"] = content["list"]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        assert read_plain_pickle(tmp_path / "x.pkl") == content


def test_a_plain_pickle_with_other_objects_is_refused_before_it_is_loaded(tmp_path):
    path = tmp_path / "x.pkl"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for other in (Payload(tmp_path / "canary"), random.Random, {1, 2}, b"bytes", STATE["a"].numpy()):
            path.write_bytes(pickle.dumps({"a": 1, "x": other}, protocol=protocol))
            with pytest.raises(InputError, match=r"holds more than plain values \([A-Z_0-9]+\)"):
                read_plain_pickle(path)
    # stores the number 1 in memo slot 2³¹ − 1: 32 GiB of slots
    path.write_bytes(b"\x80\x04K\x01r\xff\xff\xff\x7f.")
    with pytest.raises(InputError, match=r"\(LONG_BINPUT\)"):
        read_plain_pickle(path)
    assert not (tmp_path / "canary").exists()


def test_a_truncated_or_altered_plain_pickle_raises_only_input_error(tmp_path):
    path = tmp_path / "x.pkl"
    data = pickle.dumps({"stoi": {chr(i): i for i in range(60)}, "itos": dict(enumerate("abc"))})
    draw = random.Random(0)
    refused = 0
    for i in range(300):
        damaged = bytearray(data)
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        path.write_bytes(damaged[: draw.randrange(len(damaged))] if i % 3 == 0 else damaged)
        try:
            read_plain_pickle(path)
        except InputError:
            refused += 1
    assert refused >= 100
