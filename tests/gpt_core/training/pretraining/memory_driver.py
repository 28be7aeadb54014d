"""Train with several configurations and print, as JSON, the peak memory of each beside the dry run's estimate.

Run by test_dry_run.py in a separate process, whose allocator returns freed memory to the system at once, so that the
resident memory is that of the tensors in use.

    python memory_driver.py OUT_DIR
"""

import contextlib
import ctypes
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from gpt_core.data.batches import EVAL_TOKENS
from gpt_core.data.shards import ShardWriter
from gpt_core.hardware.device import Numerics, peak_memory
from gpt_core.tokenizer.tokenizer import Tokenizer
from gpt_core.training.pretraining.config import PretrainConfig
from gpt_core.training.pretraining.measure_step import measure_memory
from gpt_core.training.pretraining.pretrain import pretrain

CPU = torch.device("cpu")
M_MMAP_THRESHOLD = -3  # mallopt's parameter: larger blocks are mapped and unmapped one by one
TINY = PretrainConfig(
    max_iters=2, eval_interval=1, warmup_iters=1, n_layer=1, n_head=2, n_embd=32, block_size=16, batch_size=2,
    micro_batch_size=1, optimizer="adamw", device="cpu", dtype="float32", threads=1,
)  # fmt: skip
CASES = {  # what needs most of the memory, the configuration, tokens of the validation split
    "weights": (replace(TINY, n_layer=3, n_embd=384, batch_size=32, micro_batch_size=16), 512),
    "activations": (
        replace(TINY, n_layer=4, n_embd=64, block_size=64, batch_size=96, micro_batch_size=48, graph="gpt2"),
        512,
    ),
    "evaluation": (replace(TINY, n_inner=512, block_size=64), EVAL_TOKENS),
}


def train(config: PretrainConfig) -> int:
    """Bytes that a training adds to this process's resident memory."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the present resident memory
    before = peak_memory(CPU)
    with contextlib.redirect_stdout(io.StringIO()):
        pretrain(config)
    return peak_memory(CPU) - before


def write_data(folder: Path, n_validated: int) -> str:
    """Shards of characters."""
    tokenizer = Tokenizer.from_characters("To know what you do not")
    folder.mkdir()
    for split, n in (("train", 5000), ("val", n_validated + 1)):
        with ShardWriter(folder, split, tokenizer.vocab_size, tokenizer.fingerprint) as writer:
            writer.add(tokenizer.encode("know" * n)[:n])
    tokenizer.save(folder)
    return str(folder)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
    data = {n: write_data(out / f"data-{n}", n) for n in (512, EVAL_TOKENS)}
    train(replace(TINY, data_dir=data[512], out_dir=str(out / "first")))  # loads libraries
    found = {}
    for name, (config, n_validated) in CASES.items():
        needed = train(replace(config, data_dir=data[n_validated], out_dir=str(out / name)))
        assert config.block_size is not None
        assert config.micro_batch_size is not None
        shape = config.gpt_config(Tokenizer.from_pretrained(data[512]))
        memory = measure_memory(
            config, shape, CPU, Numerics(), config.block_size, config.micro_batch_size, n_validated
        )
        found[name] = vars(memory) | {"needed": needed, "estimated": memory.peak()}
    print(json.dumps(found))
