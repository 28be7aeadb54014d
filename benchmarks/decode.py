"""The measurements of `bench.py generate`, each run in a separate process: ours, transformers and llama.cpp."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.generation.engine import Engine, Request
from gpt_core.generation.fast_model import InferenceDtype, load_for_inference
from gpt_core.generation.sampling import SamplingParams
from gpt_core.hardware.device import DeviceName, peak_memory, wall_seconds
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer

Clocks = tuple[float, float]  # wall seconds, CPU seconds of all threads

# Arguments: a GGUF file, threads. stdin: JSON of the two prompts and the number of tokens.
LLAMA_CPP = """
import ctypes, json, sys, time
import numpy as np
import llama_cpp as lib
path, threads = sys.argv[1], int(sys.argv[2])
prompts, n_new = json.load(sys.stdin)
longest = max(map(len, prompts))
model = lib.Llama(
    path, n_ctx=longest + n_new + 8, n_batch=longest, n_ubatch=512, n_threads=threads, n_threads_batch=threads,
    verbose=False,
)
def clocks():
    return time.perf_counter(), time.process_time()
def decode(ids):
    tokens = (lib.llama_token * len(ids))(*ids)
    failed = lib.llama_decode(model.ctx, lib.llama_batch_get_one(tokens, len(ids)))
    if failed:
        sys.exit(f"llama_decode returns {failed}")
    logits = lib.llama_get_logits_ith(model.ctx, -1)
    return int(np.ctypeslib.as_array(logits, (model.n_vocab(),)).argmax())
for prompt in prompts:
    lib.llama_memory_clear(lib.llama_get_memory(model.ctx), True)
    begun = clocks()
    ids = [decode(prompt)]
    read = clocks()
    for _ in range(n_new):
        ids.append(decode(ids[-1:]))
    done = clocks()
print(json.dumps({"begun": begun, "read": read, "done": done, "ids": ids, "version": lib.__version__}))
"""


def ours(
    name: str, dtype: InferenceDtype, prompts: list[list[int]], n_new: int, threads: int, device: DeviceName
) -> dict[str, Any]:
    """Decode with our engine, without drafts.

    Args:
        name: model name or folder.
        dtype: as for `load_for_inference`.
        prompts: the first is for warm-up, the second for timing the prefill, the third is continued alone; all further
            ones are continued concurrently.
        n_new: tokens to generate after each prompt.
        threads: CPU threads.
        device: where to run.

    Returns:
        The figures of `rates` for the single request; uncached_per_s: tokens/s without a cache; concurrent_per_s and
        concurrent_cpu_ms: of all concurrent requests; bytes_per_token: mean bytes of weights and cache that a
        step of the single request reads; weights_mib; memory_gib; texts: the first n_new ids after each prompt except
        the first two.
    """
    torch.set_num_threads(threads)
    model = load_for_inference(name, dtype, device)
    n_concurrent = len(prompts) - 3
    context = min(max(map(len, prompts)) + n_new + n_concurrent + 2, model.config.block_size)
    engine = Engine(model, Tokenizer.from_pretrained(name), max(1, n_concurrent), context=context, draft=0)
    engine.eos_ids = set()  # no end-of-text token: all texts have the same length
    warm_up, read, alone, *concurrent = prompts
    _decode(engine, [warm_up], 2)
    begun = clocks()
    _decode(engine, [read], 0)
    figures = _prefill_rates(begun, clocks(), len(read))
    (request,), wall, cpu = _decode(engine, [alone], n_new)
    figures |= {"decode_per_s": 1 / wall, "cpu_ms_per_token": 1e3 * cpu}
    texts = [request.token_ids[:n_new]]
    if concurrent:
        requests, wall, cpu = _decode(engine, concurrent, n_new)
        figures |= {"concurrent_per_s": 1 / wall, "concurrent_cpu_ms": 1e3 * cpu}
        texts += [r.token_ids[:n_new] for r in requests]
    figures["uncached_per_s"] = 1 / _uncached_seconds(model, alone + texts[0], n_new)
    k = engine.cache.k  # (n_layer, n_slots, n_kv_head, length, head_dim), as is v
    cache_bytes = 2 * k[:, 0, :, 0].nbytes * (len(alone) + n_new / 2)
    return figures | {
        "bytes_per_token": weight_bytes(model) + cache_bytes,
        "weights_mib": weight_bytes(model) / 2**20,
        "memory_gib": peak_memory(model.device) / 2**30,
        "texts": texts,
    }


def transformers(
    folder: str, dtype: str, prompts: list[list[int]], n_new: int, threads: int, device: DeviceName
) -> dict[str, Any]:
    """The same with transformers' `generate`: a prompt for warm-up, and one to prefill and continue."""
    from transformers import AutoModelForCausalLM

    class Clock:
        """A streamer: `generate` passes it the prompt at the start, and each token as soon as it is on the CPU."""

        def __init__(self) -> None:
            self.at: list[Clocks] = []

        def put(self, ids: Tensor) -> None:
            self.at.append(clocks())

        def end(self) -> None:
            pass

    torch.set_num_threads(threads)
    kind = getattr(torch, dtype)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=kind, local_files_only=True)
    model.to(device).eval()
    model.generation_config.eos_token_id = None

    def generate(prompt: list[int], n: int) -> tuple[list[Clocks], list[int]]:
        ids, clock = torch.tensor([prompt], device=device), Clock()
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False, pad_token_id=0,
            streamer=clock,
        )  # fmt: skip
        return clock.at, out[0, len(prompt) :].tolist()

    warm_up, prompt = prompts
    generate(warm_up, 3)
    at, text = generate(prompt, n_new + 1)
    figures = rates(at[0], at[1], at[-1], len(prompt), n_new)
    return figures | {"memory_gib": peak_memory(model.device) / 2**30, "texts": [text[:n_new]]}


def llama_cpp(python: str, file: str, prompts: list[list[int]], n_new: int, threads: int) -> dict[str, Any]:
    """The same with llama.cpp's C functions, called through llama-cpp-python in another Python; no sampler.

    Raises:
        InputError: if it fails, with the last line of its stderr.
    """
    try:
        done = subprocess.run(
            [python, "-c", LLAMA_CPP, file, str(threads)],
            input=json.dumps([prompts, n_new]), capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError as error:
        raise InputError(
            f"--llama_python {python} does not start: {error.strerror}; expected a Python interpreter."
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"llama.cpp does not run {Path(file).name} with {python}: {last[:300]}")
    told = json.loads(done.stdout.splitlines()[-1])
    figures = rates(told["begun"], told["read"], told["done"], len(prompts[-1]), n_new)
    return figures | {"version": told["version"], "texts": [told["ids"][:n_new]]}


def read_bandwidth(threads: int, device: DeviceName) -> float:
    """Memory read bandwidth in bytes per second: the fastest of five sums over 1 GiB."""
    torch.set_num_threads(threads)
    numbers = torch.ones(2**28, device=device)
    return numbers.nbytes / min(wall_seconds(numbers.sum, numbers.device) for _ in range(5))


def clocks() -> Clocks:
    """The current wall and CPU clocks in seconds."""
    return time.perf_counter(), time.process_time()


def rates(begun: Clocks, read: Clocks, done: Clocks, n_prompt: int, n_new: int) -> dict[str, float]:
    """prefill_per_s, decode_per_s: tokens per wall second; prefill_cpu_ms, cpu_ms_per_token: CPU ms per token."""
    return _prefill_rates(begun, read, n_prompt) | {
        "decode_per_s": n_new / (done[0] - read[0]),
        "cpu_ms_per_token": 1e3 * (done[1] - read[1]) / n_new,
    }


def weight_bytes(model: GPT) -> int:
    """Bytes of the weights that a decoding step reads; embedding tables are excluded, since only a row is read."""
    head = model.wte if model.head is None else model.head
    weights = {
        tensor
        for module in (model.blocks, model.norm, head)
        for tensor in (*module.parameters(), *module.buffers())
    }
    return sum(tensor.nbytes for tensor in weights)


def _decode(engine: Engine, prompts: list[list[int]], n_new: int) -> tuple[list[Request], float, float]:
    """Continue `prompts` concurrently; wall and CPU seconds per token, from the last prefill to the first finish."""
    params = SamplingParams(max_new_tokens=n_new + len(prompts) + 1 if n_new else 1, temperature=0.0)
    requests = [engine.submit(prompt, params) for prompt in prompts]
    while not all(r.token_ids or r.done for r in requests):
        engine.step()
    n, begun = sum(len(r.token_ids) for r in requests), clocks()
    while not any(r.done for r in requests):
        engine.step()
    wall, cpu = (b - a for a, b in zip(begun, clocks(), strict=True))
    n = max(1, sum(len(r.token_ids) for r in requests) - n)
    engine.run()
    for request in requests:
        if request.error is not None:
            raise request.error
    return requests, wall / n, cpu / n


@torch.inference_mode()
def _uncached_seconds(model: GPT, ids: list[int], n_new: int) -> float:
    """Seconds per token if each of the last `n_new` ids takes a forward over all ids before it.

    The mean is estimated from three forwards by Simpson's rule, which is exact since the cost is at most quadratic in
    the length.
    """

    def forward(n: int) -> float:
        prompt = torch.tensor([ids[:n]], device=model.device)

        def best() -> int:
            return int(model.logits(model(prompt, logits=False).hidden[:, -1:]).argmax())

        return wall_seconds(best, model.device)

    first, middle, last = (forward(len(ids) - n) for n in (n_new, n_new // 2, 1))
    return (first + 4 * middle + last) / 6


def _prefill_rates(begun: Clocks, read: Clocks, n_prompt: int) -> dict[str, float]:
    return {
        "prefill_per_s": n_prompt / (read[0] - begun[0]),
        "prefill_cpu_ms": 1e3 * (read[1] - begun[1]) / n_prompt,
    }
