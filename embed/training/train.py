"""Training an embedder: data, a teacher, a network and the training loop, put together."""

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from safetensors.torch import load_file, save_file
from torch import Tensor

from embed.encoding.encoder import Encoder
from embed.formats.folder import load_network, model_folder, pad_token_id, save_embedder
from embed.formats.settings import load_settings
from embed.network.config import EmbedderConfig, Pooling
from embed.network.network import Dense, Network
from embed.training.batches import Collator, MixedBatches, Role, TaskData
from embed.training.config import TrainEmbedderConfig
from embed.training.data import attach_vectors, open_data, open_lm
from embed.training.dev_scores import evaluator
from embed.training.step import EmbeddingLoss, LanguageModel, Objective, Trainee
from embed.training.teacher_start import fit_to_teacher
from embed.training.trainable import choose_trainable, merge_lora, plain_shell
from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_write
from gpt_core.data.batches import Batches
from gpt_core.formats.card import trained
from gpt_core.hardware.device import Numerics
from gpt_core.hub import run_folder
from gpt_core.hub.locate import resolve
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.tokenizer import Tokenizer
from gpt_core.training.loop import train
from gpt_core.training.numerics import agree_on_numerics
from gpt_core.training.out_of_memory import shortage_named
from gpt_core.training.parallel.ranks import ALONE, Ranks, join
from gpt_core.training.pretraining.pretrain import evaluator as lm_evaluator

# Of a forward, padding included. Smaller ones waste time between kernels; a CPU's larger tensors are mapped anew each
# time: three times slower at 16384 tokens of SmolLM2's width.
TOKENS_PER_FORWARD = {"cpu": 4096, "cuda": 65536, "mps": 65536}


def train_embedder(config: TrainEmbedderConfig) -> dict[str, float]:
    """Train an embedder on pairs of texts, or to imitate another one; or go on with what is in out_dir.

    Leaves checkpoints in out_dir/step-N, each an embedder's folder that sentence-transformers opens. Under torchrun the
    ranks share each batch.

    Returns:
        The figures of the last evaluation.

    Raises:
        InputError: for data, a model, a teacher or a checkpoint that do not go together.
    """
    if not config.data:
        raise InputError(
            'data names nothing; give --data FILE, with lines such as {"query": …, "positive": …}.'
        )
    with join(config.device) as ranks:
        chunk = "chunk_size 32" if config.chunk_size is None else f"a chunk_size below {config.chunk_size}"
        memory = (
            f"The memory of {ranks.device} does not suffice; give {chunk}, which changes no result, or smaller numbers "
            "for train_tokens or batch_size."
        )
        with shortage_named(config.out_dir, memory):
            return _train_embedder(config, ranks)


def _train_embedder(config: TrainEmbedderConfig, ranks: Ranks) -> dict[str, float]:
    resume = ranks.on_main(lambda: run_folder.latest(config.out_dir))
    torch.manual_seed(config.seed)
    network, settings, tokenizer, fresh = build(config)
    encoder = Encoder(network.gpt, tokenizer, settings)  # for its way to cut texts
    prompts: dict[Role, str] = {"query": settings.query_prompt, "document": settings.document_prompt}

    def collator(ranks: Ranks) -> Collator:
        def tokenize(texts: list[str]) -> list[list[int]]:
            return encoder.tokenize(texts, config.train_tokens)

        return Collator(tokenize, prompts, config.n_negatives, ranks.rank, ranks.world_size)

    sets, dev_sets = open_data(config)
    lm = open_lm(config, tokenizer, ranks) if config.lm_data_dir is not None else None
    weights = list(config.weights) or [float(len(data.examples)) for data in sets]
    batches = mix(config, sets, weights, collator(ranks), None if lm is None else lm[0])
    teacher_dimension = attach_vectors(config, [*sets, *dev_sets], ranks)

    n_tokens = TOKENS_PER_FORWARD[ranks.device.type]
    numerics = agree_on_numerics(config, ranks, network.gpt.config.n_embd, n_tokens, resume)
    # What auto takes on a GPU without bfloat16; but the loss runs its own backward, unscaled.
    if numerics.dtype == "float16":
        numerics = replace(numerics, dtype="float32")
    torch.manual_seed(config.seed)  # again: what rank 0 did alone may have drawn numbers
    trainee = Trainee(network, config.temperature, config.learn_temperature, teacher_dimension)
    choose_trainable(network, config)
    trainee.to(ranks.device)
    if resume is not None:
        load_trained(trainee, resume, config)
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
            figures["lm_loss"] = lm_evaluator(lm[1], ranks, numerics)(LanguageModel(model))["val_loss"]
            figures["val_loss"] += config.lm_weight * figures["lm_loss"]
        return figures

    texts = [f"`{data.name}`: {len(data.examples):,} examples" for data in sets]
    card = ranks.on_main(lambda: trained(config, texts, config.init_from, resume))

    def save_model(folder: Path, weights: dict[str, Tensor]) -> None:
        own = {name.removeprefix("network."): w for name, w in weights.items() if name.startswith("network.")}
        save_embedder(folder, plain_shell(network), settings, tokenizer, merge_lora(own, config), card)
        beside = {name: w for name, w in weights.items() if not in_the_model(name)}
        save_file(beside, folder / "training.safetensors")

    if ranks.main:
        describe(config, trainee, batches, numerics, resume)
    with ExitStack() as held:
        ranks.on_main(lambda: held.enter_context(run_folder.alone_in(Path(config.out_dir))))
        if lm is not None:
            held.callback(lm[0].close)
        before = first_figures(config, trainee, evaluate, resume, ranks)
        if config.parallel == "fsdp2":
            trainee.cpu()  # from where each rank takes its part
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
            print(f"{n_cut:,} times a text was cut to {limit} tokens, evaluations included")
        report(config, before)
    return figures


def build(config: TrainEmbedderConfig) -> tuple[Network, EmbedderConfig, Tokenizer, bool]:
    """The network to train, with the weights of `init_from`.

    Returns:
        The network, its settings, its tokenizer, and whether it got a new dense layer.

    Raises:
        InputError: for blocks that the model does not have, or dimensions that its vectors cannot have.
    """
    folder = resolve(config.init_from)
    if (folder / "modules.json").is_file() or (folder / "embedder.json").is_file():
        start, settings = load_network(folder), load_settings(folder)
    else:
        start, settings = Network(GPT.from_pretrained(model_folder(folder)), Pooling()), EmbedderConfig()
    shape = start.gpt.config
    for name in ("n_layer", "pooling_layer"):
        n = getattr(config, name)
        if n is not None and n > shape.n_layer:
            raise InputError(f"{name} is {n}, but {config.init_from} has {shape.n_layer} blocks.")
    n_layer = config.n_layer or shape.n_layer
    gpt = GPT(replace(shape, n_layer=n_layer, dropout=config.dropout))
    kept = gpt.state_dict()
    gpt.load_state_dict({name: w for name, w in start.gpt.state_dict().items() if name in kept})

    pooling = settings.pooling
    if (layer := config.n_layer or config.pooling_layer) is not None:
        whole = layer == n_layer
        pooling = replace(pooling, layer=None if whole else layer, final_norm=not whole)
    if config.pooling is not None:
        pooling = replace(pooling, mode=config.pooling)
    dense = start.dense_layers
    fresh = config.dimension not in (None, start.dimension)
    if config.dimension is not None and fresh:
        if dense:
            raise InputError(
                f"dimension is {config.dimension}, but {config.init_from} ends with a dense layer to "
                f"{start.dimension}; leave dimension out."
            )
        dense = [Dense(start.dimension, config.dimension)]
    dimension = config.dimension or start.dimension
    if config.matryoshka and config.matryoshka[-1] > dimension:
        raise InputError(
            f"matryoshka names {config.matryoshka[-1]}, but the vectors have {dimension} numbers; leave out what is "
            "above that."
        )
    query_prompt, document_prompt = config.query_prompt, config.document_prompt
    settings = replace(
        settings,
        pooling=pooling,
        max_tokens=min(config.max_tokens, shape.block_size),
        query_prompt=settings.query_prompt if query_prompt is None else query_prompt,
        document_prompt=settings.document_prompt if document_prompt is None else document_prompt,
    )
    tokenizer = Tokenizer.from_pretrained(model_folder(folder))
    pad_token_id(tokenizer)  # which must be there for a checkpoint: said now, not after a thousand steps
    return Network(gpt, pooling, dense), settings, tokenizer, fresh


def mix(
    config: TrainEmbedderConfig,
    sets: Sequence[TaskData],
    weights: Sequence[float],
    collate: Collator,
    lm: Batches | None,
) -> MixedBatches:
    """The stream of batches, which knows what must be the same for a run to go on."""
    identity: dict[str, Any] = {
        "trainable": config.trainable,
        "max_tokens": config.train_tokens or config.max_tokens,
    }
    if config.trainable == "lora":
        identity["init_from"] = config.init_from  # checkpoints hold only what was added to it
    return MixedBatches(sets, weights, config.batch_size, config.seed, collate, lm, identity)


def load_trained(trainee: Trainee, path: Path, config: TrainEmbedderConfig) -> None:
    """Put the weights of a checkpoint into `trainee`.

    Raises:
        InputError: if they are of another shape than the configuration asks for.
    """
    if not (path / "training.safetensors").is_file():
        raise InputError(f"{path} is a checkpoint of another kind of training; choose another out_dir.")
    state, mine = load_file(path / "training.safetensors"), trainee.state_dict()
    saved = {f"network.{name}": w for name, w in load_network(path).state_dict().items()}
    if config.trainable == "lora":  # the model's files have the updates added up, so the GPT is init_from's
        gpt = "network.gpt."
        saved = {name: w for name, w in saved.items() if not name.startswith(gpt)}
        mine = {name: w for name, w in mine.items() if not name.startswith(gpt) or ".lora_" in name}
    state |= saved
    for name in [*mine, *state]:
        if name not in state or name not in mine or state[name].shape != mine[name].shape:
            raise InputError(
                f"{path} is of another model than this configuration makes: {name} differs. Resume with the same "
                "configuration, or choose another out_dir."
            )
    # Copied, not assigned: tensors mapped from a file may be aligned otherwise, and kernels then round otherwise.
    trainee.load_state_dict(state, strict=False)


def in_the_model(name: str) -> bool:
    """Whether a tensor is in the embedder's own files; the temperature, a projection and LoRA's updates are not."""
    return name.startswith("network.") and ".lora_" not in name


def describe(
    config: TrainEmbedderConfig,
    trainee: Trainee,
    batches: MixedBatches,
    numerics: Numerics,
    resume: Path | None,
) -> None:
    """Print in a few lines what is about to happen."""
    learning = sum(p.numel() for p in trainee.parameters() if p.requires_grad)
    network, shape = trainee.network, trainee.network.gpt.config
    pooled = shape.n_layer if network.pooling.layer is None else network.pooling.layer
    print(
        f"{config.init_from}: {pooled} of {shape.n_layer} blocks, {network.pooling.mode}, vectors of "
        f"{network.dimension}; {learning:,} parameters learn ({config.trainable})"
    )
    if trainee.projection is not None:
        print(
            f"{config.teacher} has vectors of {len(trainee.projection)}: a projection leads there, which only training "
            "needs"
        )
    for data, share in zip(batches.sets, batches.shares, strict=True):
        print(f"{data.name}: {len(data.examples):,} examples, {share:.1%} of the batches")
    where = "" if resume is None else f", going on from {resume}"
    print(
        f"{numerics.dtype}, {numerics.threads} threads, {config.batch_size} examples a step{where}",
        flush=True,
    )


def first_figures(
    config: TrainEmbedderConfig,
    trainee: Trainee,
    evaluate: Callable[[nn.Module], dict[str, float]],
    resume: Path | None,
    ranks: Ranks,
) -> dict[str, float]:
    """What the evaluation said before the first step; kept in out_dir/before.json for a run that is resumed."""
    path = Path(config.out_dir, "before.json")

    def kept() -> dict[str, float] | None:
        return json.loads(path.read_text(encoding="utf-8")) if resume and path.is_file() else None

    if (figures := ranks.on_main(kept)) is not None:
        return figures
    trainee.eval()
    with torch.no_grad():
        figures = evaluate(trainee)
    ranks.on_main(lambda: atomic_write(path, json.dumps(figures, indent=1) + "\n"))
    return figures


def report(config: TrainEmbedderConfig, before: dict[str, float]) -> None:
    """Print what the best checkpoint's figures are, beside those before training."""
    best = run_folder.best_or_latest(config.out_dir)
    if best is None:
        return
    after = run_folder.load_state(best)["figures"]
    for name in before:
        if name in after:
            print(f"{name}: {before[name]:.4f} before, {after[name]:.4f} after")
    print(f"the best checkpoint, an embedder's folder: {best}")
