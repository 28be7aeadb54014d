"""Benchmark generation: ours, transformers and llama.cpp, against memory bandwidth and without optimisations."""

import contextlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.decode import llama_cpp, ours, read_bandwidth, transformers
from benchmarks.own_process import in_own_process
from benchmarks.quality import predictions, read_ids, same_texts, same_tokens
from benchmarks.quotes import quotes, read_questions, summary
from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from gpt_core.evaluation.report import print_report
from gpt_core.formats.export import export_gguf, export_hf
from gpt_core.formats.pretrained import read_config
from gpt_core.generation.fast_model import InferenceDtype
from gpt_core.hardware.device import DeviceName, available_cores, pick_device
from gpt_core.hub.locate import gguf_in, resolve
from gpt_core.tokenizer.tokenizer import Tokenizer

COLUMNS = (
    "system", "dtype", "prefill_per_s", "decode_per_s", "cpu_ms_per_token", "uncached_per_s", "concurrent_per_s",
    "of_bandwidth", "perplexity", "same_next", "tokens_per_step",
)  # fmt: skip
OURS, PEER, LLAMA = "ours", "transformers", "llama.cpp"
N_CONCURRENT = 8  # concurrent requests
MEDIANS = (
    "prefill_per_s", "prefill_cpu_ms", "decode_per_s", "cpu_ms_per_token", "uncached_per_s", "concurrent_per_s",
    "concurrent_cpu_ms",
)  # fmt: skip
SPEEDS = (
    ("decode_per_s", "tokens/s"),
    ("cpu_ms_per_token", "CPU-s/token"),
    ("prefill_per_s", "prefill tokens/s"),
)

Systems = dict[tuple[str, str], Callable[[list[list[int]]], dict[str, Any]]]


def bench_generate(
    *,
    model: str,
    data: str,
    llama_python: str | None = None,
    squad: str | None = None,
    dtypes: tuple[InferenceDtype, ...] = ("float32", "bfloat16", "int8"),
    prompt_tokens: int = 512,
    new_tokens: int = 128,
    rounds: int = 3,
    eval_tokens: int = 16384,
    answers: int = 100,
    draft: int = 8,
    squad_dtype: InferenceDtype = "float32",
    threads: int | None = None,
    device: DeviceName = "auto",
) -> None:
    """Measure greedy decoding with the same weights: our engine, transformers' generate and llama.cpp.

    Each measurement runs in a separate process; the systems alternate for `rounds` rounds, with different prompts in
    each round. Figures are medians over the rounds. End-of-text tokens are ignored, and tokens are drafted only with
    --squad. prefill_per_s: prompt tokens per wall second; decode_per_s: new tokens per wall second, without the first;
    cpu_ms_per_token: CPU time of all threads per new token, less affected by other programs; uncached_per_s: tokens/s
    with a full forward per token; concurrent_per_s: tokens/s of eight concurrent requests; of_bandwidth: bytes of
    weights and cache read per second, as a fraction of the machine's measured read bandwidth; perplexity: on the first
    eval_tokens of data, in windows of 512; same_next: how often the most probable token is that of the first of dtypes;
    same_texts and same_for: the fraction of greedy texts equal to that of the first of dtypes, and the mean length of
    the common prefix in tokens. llama.cpp runs the model's own GGUF file, if it has one, and exports as Q8_0 and F16.
    With --squad, answers that quote passages are generated with and without drafts. Prints a table and ends with a
    line of JSON.

    Args:
        model: a model folder or known name.
        data: a text: a file, a folder of files, or token shards of the model's tokenizer.
        llama_python: a Python interpreter with llama-cpp-python; without it, llama.cpp is left out.
        squad: SQuAD's JSON (.json, .json.gz), for answers that quote.
        dtypes: dtypes of our engine; transformers runs those that it supports.
        prompt_tokens: prompt length.
        new_tokens: tokens to generate after each prompt.
        rounds: measurements per system.
        eval_tokens: tokens of data for the perplexity; 0: none.
        answers: number of questions from squad, each on a different passage.
        draft: maximum number of drafted tokens per step, with --squad.
        squad_dtype: dtype of the model, with --squad.
        threads: CPU threads; None: all cores.
        device: auto: cuda, else mps, else cpu.
    """
    counts = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens, "rounds": rounds, "answers": answers}
    for name, value in (counts | {"draft": draft, "threads": 1 if threads is None else threads}).items():
        if value < 1:
            raise InputError(f"{name} is {value}; expected at least 1.")
    if eval_tokens < 0:
        raise InputError(f"eval_tokens is {eval_tokens}; expected at least 1, or 0 for no perplexity.")
    if not dtypes:
        raise InputError("dtypes is empty; expected one or more of float32, bfloat16 and int8.")
    with extra("eval"):
        import transformers  # noqa: F401  (fail here, not in a subprocess)
    folder, place, n_threads = resolve(model), pick_device(device).type, threads or available_cores()
    questions = [] if squad is None else read_questions(squad, answers)
    block_size = read_config(folder).block_size
    if prompt_tokens + new_tokens + N_CONCURRENT + 1 > block_size:
        raise InputError(
            f"prompt_tokens + new_tokens is {prompt_tokens + new_tokens}; expected at most "
            f"{block_size - N_CONCURRENT - 1} for the model's context of {block_size} tokens."
        )
    ids = read_ids(data, model, Tokenizer.from_pretrained(folder), max(eval_tokens + 1, 2**16))
    prompts = cut_prompts(ids, rounds, prompt_tokens, data)

    with tempfile.TemporaryDirectory() as scratch:
        systems = _systems(folder, Path(scratch), dtypes, new_tokens, n_threads, place)
        if llama_python is not None:
            systems |= _llama(folder, Path(scratch), llama_python, new_tokens, n_threads)
        runs: dict[tuple[str, str], list[dict[str, Any]]] = {name: [] for name in systems}
        bandwidths: list[float] = []
        for number in range(rounds):
            bandwidths.append(in_own_process(read_bandwidth, n_threads, place))
            for (system, dtype), run in systems.items():
                say(f"round {number + 1} of {rounds}: {system}, {dtype}")
                runs[system, dtype].append(run(prompts[number]))
    rows = {name: _row(*name, measured, max(bandwidths)) for name, measured in runs.items()}
    _add_texts(rows, runs, dtypes[0])
    if eval_tokens:
        _add_quality(rows, str(folder), dtypes, ids[: eval_tokens + 1], n_threads, place)
    found, ratios = list(rows.values()), _ratios(rows, dtypes)
    if questions:
        say(f"{len(questions)} answers with and without drafts, {squad_dtype}")
        told = in_own_process(quotes, str(folder), squad_dtype, questions, draft, n_threads, place)
        quoted, brought = summary(told, draft, squad_dtype)
        found, ratios = found + quoted, ratios | brought
    if llama_python is None:
        say("llama.cpp is left out; to include it, give --llama_python a Python with llama-cpp-python")
    print_report(found, COLUMNS, ratios, ("transformers",))


def cut_prompts(ids: list[int], rounds: int, size: int, data: str) -> list[list[list[int]]]:
    """Cut a text into each round's prompts, in the order of `benchmarks.decode.ours`.

    Raises:
        InputError: if the text is too short for different prompts.
    """
    n = N_CONCURRENT + 3
    stride = min(size, (len(ids) - size) // max(rounds * n - 1, 1))
    if stride < 1:
        raise InputError(
            f"{data} has {len(ids)} tokens; expected at least {size + rounds * n - 1} for {rounds} rounds."
        )
    windows = [ids[i * stride : i * stride + size] for i in range(rounds * n)]
    return [windows[i * n : (i + 1) * n] for i in range(rounds)]


def say(what: str) -> None:
    """Print progress to stderr."""
    print(what, file=sys.stderr, flush=True)


def _systems(
    folder: Path, scratch: Path, dtypes: tuple[InferenceDtype, ...], n_new: int, threads: int, device: str
) -> Systems:
    """The systems in order: for each dtype transformers, if it supports it, then ours."""

    def own(dtype: InferenceDtype) -> Callable[[list[list[int]]], dict[str, Any]]:
        return lambda prompts: in_own_process(ours, str(folder), dtype, prompts, n_new, threads, device)

    def peer(dtype: str) -> Callable[[list[list[int]]], dict[str, Any]]:
        return lambda prompts: in_own_process(
            transformers, str(scratch / "hf"), dtype, [prompts[0], prompts[2]], n_new, threads, device
        )

    say("exporting the model for transformers")
    export_hf(folder, scratch / "hf")
    systems: Systems = {}
    for dtype in dtypes:
        if dtype not in ("int8", "auto"):
            systems[PEER, dtype] = peer(dtype)
        systems[OURS, dtype] = own(dtype)
    return systems


def _llama(folder: Path, scratch: Path, python: str, n_new: int, threads: int) -> Systems:
    """llama.cpp with the model's own GGUF file and with exported files."""

    def peer(file: Path) -> Callable[[list[list[int]]], dict[str, Any]]:
        return lambda prompts: llama_cpp(python, str(file), [prompts[0], prompts[2]], n_new, threads)

    say("exporting the model for llama.cpp")
    own = gguf_in(folder)
    files = {} if own is None else {own.name: own}
    with contextlib.redirect_stdout(sys.stderr):
        files["Q8_0"] = export_gguf(folder, scratch / "q8_0", "q8_0")
        files["F16"] = export_gguf(folder, scratch / "f16", "float16")
    return {(LLAMA, name): peer(file) for name, file in files.items()}


def _row(system: str, dtype: str, runs: list[dict[str, Any]], bandwidth: float) -> dict[str, Any]:
    """The medians over a system's rounds, and the figures of each round."""
    row: dict[str, Any] = {"system": system, "dtype": dtype}
    row |= {key: float(np.median([run[key] for run in runs])) for key in MEDIANS if key in runs[0]}
    if "bytes_per_token" in runs[0]:
        row["of_bandwidth"] = row["decode_per_s"] * runs[0]["bytes_per_token"] / bandwidth
        row |= {"bandwidth_gb_per_s": bandwidth / 1e9, "mb_per_token": runs[0]["bytes_per_token"] / 1e6}
    row |= {key: runs[0][key] for key in ("weights_mib", "memory_gib", "version") if key in runs[0]}
    return row | {"rounds": [[run["decode_per_s"], run["cpu_ms_per_token"]] for run in runs]}


def _add_texts(
    rows: dict[tuple[str, str], dict[str, Any]], runs: dict[tuple[str, str], list[dict[str, Any]]], first: str
) -> None:
    """Add to the rows how far the texts equal those of our engine in dtype `first`."""
    for key, measured in runs.items():
        written, reference = [], []
        for run, other in zip(measured, runs[OURS, first], strict=True):
            written += run["texts"]
            reference += other["texts"][: len(run["texts"])]  # peers continued only the single prompt
        rows[key] |= same_texts(written, reference)


def _add_quality(
    rows: dict[tuple[str, str], dict[str, Any]],
    folder: str,
    dtypes: tuple[InferenceDtype, ...],
    ids: list[int],
    threads: int,
    device: str,
) -> None:
    """Add perplexity and agreement with the first of `dtypes` to our rows."""
    reference: Any = None
    for dtype in dtypes:
        say(f"predicting {len(ids) - 1} tokens, {dtype}")
        found = in_own_process(predictions, folder, dtype, ids, threads, device)
        reference = found["best"] if reference is None else reference
        rows[OURS, dtype] |= {
            "perplexity": float(np.exp(found["loss"])),
            "same_next": same_tokens(found["best"], reference),
        }


def _ratios(
    rows: dict[tuple[str, str], dict[str, Any]], dtypes: tuple[InferenceDtype, ...]
) -> dict[str, float]:
    ratios: dict[str, float] = {}

    def compare(one: tuple[str, str], other: tuple[str, str], kinds: tuple[tuple[str, str], ...]) -> None:
        for key, words in kinds:
            if one in rows and key in rows[one] and key in rows.get(other, {}):
                ratios[f"{' '.join(one)}/{' '.join(other)} {words}"] = rows[one][key] / rows[other][key]

    for dtype in dtypes:
        row = rows[OURS, dtype]
        compare((OURS, dtype), (PEER, dtype), SPEEDS)
        ratios[f"{OURS} {dtype}, with/without a cache tokens/s"] = row["decode_per_s"] / row["uncached_per_s"]
        ratios[f"{OURS} {dtype}, {N_CONCURRENT} requests/1 tokens/s"] = (
            row["concurrent_per_s"] / row["decode_per_s"]
        )
        ratios[f"{OURS} {dtype}, {N_CONCURRENT} requests/1 tokens/CPU-s"] = (
            row["cpu_ms_per_token"] / row["concurrent_cpu_ms"]
        )
        ratios[f"{OURS} {dtype}/memory bandwidth"] = row["of_bandwidth"]
    compare((OURS, "int8"), (OURS, "bfloat16"), (*SPEEDS, ("perplexity", "perplexity")))
    for dtype in dtypes:
        for name in rows:
            if name[0] == LLAMA:
                compare((OURS, dtype), name, SPEEDS)
    return ratios
