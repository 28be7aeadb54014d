"""The command that trains an embedder: connects data, teacher, network and training loop."""

import json
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from safetensors.torch import load_file
from torch import Tensor

from embed.encoding.encoder import Encoder
from embed.encoding.peer_model import Teacher
from embed.formats.folder import load_network, save_embedder
from embed.training.batches import Collator, MixedBatches, Role, TaskData
from embed.training.config import TrainEmbedderConfig
from embed.training.data import attach_groups, attach_vectors, open_data, open_lm
from embed.training.dev_scores import evaluator
from embed.training.start import SCRATCH, build
from embed.training.step import EmbeddingLoss, LanguageModel, Objective, Trainee
from embed.training.teacher_start import fit_to_teacher, start_table
from embed.training.trainable import choose_trainable, plain_shell
from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_write
from gpt_core.data.batches import Batches
from gpt_core.formats.card import trained
from gpt_core.formats.tensor_file import save_tensors
from gpt_core.hardware.device import Numerics
from gpt_core.hub import run_folder
from gpt_core.training.checkpoint import lock_out_dir
from gpt_core.training.loop import train
from gpt_core.training.numerics import agree_on_numerics, dtype_reason
from gpt_core.training.out_of_memory import explain_full_memory_or_disk
from gpt_core.training.parallel.ranks import ALONE, Ranks, join
from gpt_core.training.trainable import merge_lora
from gpt_core.training.validation import split_loss

# Padding included. Smaller forwards are dominated by kernel launches. On a CPU, memory of larger tensors is mapped anew
# for each: three times slower at 16,384 tokens of SmolLM2's width.
TOKENS_PER_FORWARD = {"cpu": 4096, "cuda": 65536, "mps": 65536}
TOKENS_OF_TABLE = 2**22  # the gradient of each forward is as large as the table


def train_embedder(config: TrainEmbedderConfig) -> dict[str, float]:
    """Train an embedder on pairs, or by distillation from a teacher; resume if out_dir has a checkpoint.

    Saves checkpoints in out_dir/step-N, each an embedder's folder that sentence-transformers opens. Under torchrun, the
    ranks share each batch.

    Returns:
        The metrics of the last evaluation.

    Raises:
        InputError: for data, a model, a teacher or a checkpoint that cannot be read or do not match each other.
    """
    if not config.data:
        raise InputError('data is empty; give --data FILE, with lines such as {"query": …, "positive": …}.')
    with join(config.device) as ranks:
        chunk = "chunk_size 32" if config.chunk_size is None else f"a chunk_size below {config.chunk_size}"
        memory = (
            f"{ranks.device} is out of memory; give {chunk}, which does not change the result, or a smaller "
            "train_tokens or batch_size."
        )
        with explain_full_memory_or_disk(config.out_dir, memory):
            return _train_embedder(config, ranks)


def _train_embedder(config: TrainEmbedderConfig, ranks: Ranks) -> dict[str, float]:
    resume = ranks.on_main(lambda: run_folder.latest(config.out_dir))
    torch.manual_seed(config.seed)
    network, settings, tokenizer, fresh = build(config)
    encoder = Encoder(network.gpt, tokenizer, settings)  # tokenises and truncates texts
    prompts: dict[Role, str] = {"query": settings.query_prompt, "document": settings.document_prompt}

    def collator(ranks: Ranks) -> Collator:
        def tokenize(texts: list[str]) -> list[list[int]]:
            return encoder.tokenize(texts, config.train_tokens)

        return Collator(tokenize, prompts, config.n_negatives, ranks.rank, ranks.world_size)

    sets, dev_sets = open_data(config)
    n_rows = network.gpt.config.vocab_size
    lm = open_lm(config, tokenizer, n_rows, ranks) if config.lm_data_dir is not None else None
    weights = list(config.weights) or [float(len(data.examples)) for data in sets]
    attach_groups(config, sets, ranks)
    batches = mix(config, sets, weights, collator(ranks), None if lm is None else lm[0])
    teacher_dimension = attach_vectors(config, [*sets, *dev_sets], ranks)

    table = network.is_table
    n_tokens = TOKENS_OF_TABLE if table else TOKENS_PER_FORWARD[ranks.device.type]
    numerics = agree_on_numerics(config, ranks, resume)
    # auto selects float16 on a GPU without bfloat16, but EmbeddingLoss runs its own backward without loss scaling.
    if numerics.dtype == "float16":
        numerics = replace(numerics, dtype="float32")
    torch.manual_seed(config.seed)  # again, because rank 0 may have used random numbers above
    trainee = Trainee(network, config.temperature, config.learn_temperature, teacher_dimension)
    choose_trainable(network, config)
    trainee.to(ranks.device)
    if resume is not None:
        load_trained(trainee, resume, config)
    elif config.init_from == SCRATCH and table:
        teacher = None
        if config.table_start == "teacher":
            teacher = Teacher(config.teacher or "", device=str(ranks.device))
        start_table(network, tokenizer, sets, collator(ALONE), teacher)
    elif teacher_dimension is not None and (fresh or trainee.projection is not None):
        with numerics.autocast():
            fit_to_teacher(trainee, sets, collator(ALONE), n_tokens)

    objective = Objective(config)
    evaluate_vectors = evaluator(
        dev_sets,
        [1.0] * len(dev_sets) if config.dev_data else weights,
        config.batch_size,
        objective,
        collator(ALONE),
        numerics,
        n_tokens,
    )

    def evaluate(model: nn.Module) -> dict[str, float]:
        figures = evaluate_vectors(model)
        if lm is not None:
            assert isinstance(model, Trainee)
            figures["lm_loss"], _ = split_loss(LanguageModel(model), lm[1], numerics, ranks)
            figures["val_loss"] += config.lm_weight * figures["lm_loss"]
        return figures

    texts = [f"`{data.name}`: {len(data.examples):,} examples" for data in sets]
    source = None if config.init_from == SCRATCH else config.init_from
    card = ranks.on_main(lambda: trained(config, texts, source, resume))

    def save_model(folder: Path, weights: dict[str, Tensor]) -> None:
        own = {name.removeprefix("network."): w for name, w in weights.items() if name.startswith("network.")}
        save_embedder(
            folder, plain_shell(network), settings, tokenizer, merge_lora(own, config.lora_scale), card
        )
        beside = {name: w for name, w in weights.items() if not in_the_model(name)}
        save_tensors(folder / "training.safetensors", beside)

    if ranks.main:
        describe(config, trainee, batches, numerics, resume)
    with lock_out_dir(config.out_dir, ranks), nullcontext() if lm is None else closing(lm[0]):
        before = first_figures(config, trainee, evaluate, resume, ranks)
        if config.parallel == "fsdp2":
            trainee.cpu()  # FSDP2 shards from the CPU's weights
        figures = train(
            trainee,
            batches,
            EmbeddingLoss(objective, n_tokens, ranks),
            evaluate,
            config,
            save_model=save_model,
            resume=resume,
            ranks=ranks,
            numerics=numerics,
        )
    n_cut = int(ranks.sum(torch.tensor(encoder.n_truncated, device=ranks.device)))
    if ranks.main:
        if n_cut:
            limit = min(config.train_tokens or encoder.max_tokens, encoder.max_tokens)
            print(f"{n_cut:,} texts were truncated to {limit} tokens, repetitions and evaluations included")
        report(config, before)
    return figures


def mix(
    config: TrainEmbedderConfig,
    sets: Sequence[TaskData],
    weights: Sequence[float],
    collate: Collator,
    lm: Batches | None,
) -> MixedBatches:
    """The stream of batches, with the settings that must be equal for a run to resume."""
    identity: dict[str, Any] = {
        "trainable": config.trainable,
        "max_tokens": config.train_tokens or config.max_tokens,
        "groups": f"{config.group_size} by {config.group_by}" if config.group_by else None,
    }
    if config.trainable == "lora":
        identity["init_from"] = config.init_from  # a resumed run takes the GPT's weights from init_from
    return MixedBatches(sets, weights, config.batch_size, config.seed, collate, lm, identity)


def load_trained(trainee: Trainee, path: Path, config: TrainEmbedderConfig) -> None:
    """Load the weights of the checkpoint `path` into `trainee`.

    Raises:
        InputError: if names or shapes of the weights do not match the configuration.
    """
    if not (path / "training.safetensors").is_file():
        raise InputError(f"{path} is not a checkpoint of embedding training; choose another out_dir.")
    state, mine = load_file(path / "training.safetensors"), trainee.state_dict()
    saved = {f"network.{name}": w for name, w in load_network(path).state_dict().items()}
    if (
        config.trainable == "lora"
    ):  # saved GPT weights have the updates merged; use those of init_from instead
        gpt = "network.gpt."
        saved = {name: w for name, w in saved.items() if not name.startswith(gpt)}
        mine = {name: w for name, w in mine.items() if not name.startswith(gpt) or ".lora_" in name}
    state |= saved
    for name in [*mine, *state]:
        if name not in state or name not in mine or state[name].shape != mine[name].shape:
            raise InputError(
                f"The checkpoint {path} does not match this configuration: {name} differs. Resume with the same "
                "configuration, or choose another out_dir."
            )
    # Copied, not assigned: memory-mapped tensors may have another alignment, with which kernels round differently.
    trainee.load_state_dict(state, strict=False)


def in_the_model(name: str) -> bool:
    """Whether a tensor is saved in the embedder's files; temperature, projection and LoRA's updates are not."""
    return name.startswith("network.") and ".lora_" not in name


def describe(
    config: TrainEmbedderConfig,
    trainee: Trainee,
    batches: MixedBatches,
    numerics: Numerics,
    resume: Path | None,
) -> None:
    """Print a summary of the training: model, data, dtype."""
    learning = sum(p.numel() for p in trainee.parameters() if p.requires_grad)
    network, shape = trainee.network, trainee.network.gpt.config
    pooled = shape.n_layer if network.pooling.layer is None else network.pooling.layer
    print(
        f"{config.init_from}: {pooled} of {shape.n_layer} blocks, {network.pooling.mode} pooling, vectors of "
        f"{network.dimension} dimensions; {learning:,} trainable parameters ({config.trainable})"
    )
    if trainee.projection is not None:
        print(
            f"{config.teacher} has vectors of {len(trainee.projection)} dimensions: a projection to them is trained, "
            "but not saved with the embedder"
        )
    for data, share in zip(batches.sets, batches.shares, strict=True):
        print(f"{data.name}: {len(data.examples):,} examples, {share:.1%} of the batches")
    where = "" if resume is None else f", resuming from {resume}"
    print(
        f"{numerics.dtype} ({dtype_reason(config, numerics, resume)}), {numerics.threads} threads, "
        f"{config.batch_size} examples per step{where}",
        flush=True,
    )


def first_figures(
    config: TrainEmbedderConfig,
    trainee: Trainee,
    evaluate: Callable[[nn.Module], dict[str, float]],
    resume: Path | None,
    ranks: Ranks,
) -> dict[str, float]:
    """Metrics before the first step; saved in out_dir/before.json, where a resumed run reads them."""
    path = Path(config.out_dir, "before.json")

    def saved() -> dict[str, float] | None:
        return json.loads(path.read_text(encoding="utf-8")) if resume and path.is_file() else None

    if (figures := ranks.on_main(saved)) is not None:
        return figures
    trainee.eval()
    with torch.no_grad():
        figures = evaluate(trainee)
    ranks.on_main(lambda: atomic_write(path, json.dumps(figures, indent=1) + "\n"))
    return figures


def report(config: TrainEmbedderConfig, before: dict[str, float]) -> None:
    """Print the best checkpoint's metrics beside those before training."""
    best = run_folder.best_or_latest(config.out_dir)
    if best is None:
        return
    after = run_folder.load_state(best)["figures"]
    for name in before:
        if name in after:
            print(f"{name}: {before[name]:.4f} before, {after[name]:.4f} after")
    print(f"best checkpoint (an embedder's folder): {best}")
