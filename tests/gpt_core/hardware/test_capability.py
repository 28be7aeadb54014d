"""The table that chooses dtype and oneDNN by the processor's instructions."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gpt_core.hardware.capability import Capability, capability


@pytest.fixture(autouse=True)
def fresh_cache() -> Iterator[None]:
    capability.cache_clear()
    yield
    capability.cache_clear()


@pytest.mark.parametrize(
    ("cpu_name", "flags", "expected"),
    [
        ("Intel Xeon", ["avx512_f", "avx512_bf16", "amx_bf16"], ("bfloat16", False, "Intel Xeon has AMX")),
        ("AMD EPYC", ["avx512_f", "avx512_bf16"], ("bfloat16", True, "AMD EPYC has AVX-512 bf16")),
        ("AMD EPYC", ["avx512_f"], ("float32", True, "AMD EPYC has neither")),
        ("AMD EPYC", [], ("float32", False, "AMD EPYC has neither")),
        ("Intel Xeon", ["avx512_f"], ("float32", False, "Intel Xeon has neither")),
    ],
)
def test_the_row_follows_from_vendor_and_instructions(
    monkeypatch: pytest.MonkeyPatch, cpu_name: str, flags: list[str], expected: tuple[str, bool, str]
) -> None:
    given = {"cpu_name": cpu_name, "architecture": "x86_64"} | dict.fromkeys(flags, True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: given)
    row = capability("cpu")
    assert row[:2] == expected[:2]
    assert row.reason.startswith(expected[2])


@pytest.mark.skipif(
    not Path("/proc/cpuinfo").exists(), reason="/proc/cpuinfo lists the instructions on Linux only"
)
def test_this_machine_takes_bfloat16_if_its_processor_has_the_instructions() -> None:
    flags = Path("/proc/cpuinfo").read_text().split()
    has_bf16 = "amx_bf16" in flags or "avx512_bf16" in flags
    assert capability("cpu").dtype == ("bfloat16" if has_bf16 else "float32")


def test_other_devices_use_float32_unless_the_gpu_multiplies_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert capability("mps") == Capability("float32", False, "bfloat16 was never measured on mps")
    for supported, dtype in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, yes=supported: yes)
        capability.cache_clear()
        assert capability("cuda").dtype == dtype
