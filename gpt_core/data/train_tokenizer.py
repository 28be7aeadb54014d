"""Train a byte-level BPE tokenizer, as GPT-2 has it, on your text."""

from pathlib import Path

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as RustTokenizer

from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_folder, require_empty_folder
from gpt_core.data.documents import OnBadRow
from gpt_core.data.phrases import PhraseCounter
from gpt_core.data.prepare_data import read_with_bar
from gpt_core.data.sources import open_source
from gpt_core.tokenizer.tokenizer import Tokenizer

EOS = "<|endoftext|>"
MIN_VOCAB_SIZE = 257  # 256 bytes and the end-of-text token


def train_tokenizer(
    *,
    out: str,
    vocab_size: int,
    input: list[str] | None = None,
    dataset: str | None = None,
    dataset_config: str | None = None,
    dataset_split: str = "train",
    column: str = "text",
    min_frequency: int = 2,
    uncased: bool = False,
    n_phrases: int = 0,
    on_bad_row: OnBadRow = "stop",
) -> None:
    """Train a byte-level BPE with GPT-2's pre-tokenization and write a folder that --tokenizer and transformers load.

    Encoding and decoding restore any text, because all 256 bytes are tokens. Token 0 is the end-of-text token
    <|endoftext|>. The same text gives the same tokenizer. Memory grows with the number of distinct words, not with the
    length of the text.

    Args:
        out: the output folder; it must be empty or not exist.
        vocab_size: number of tokens, 257 (bytes alone) or more; a multiple of 64 is fast on a GPU.
        input: files (.txt, .md, .markdown: text; .jsonl, .jsonl.gz, .jsonl.xz, .csv, .parquet: rows), or folders of
            such files. What cannot be read in a folder is skipped, with a line on stderr.
        dataset: a data set instead of files, as in scripts/prepare_data.py.
        dataset_config: configuration of the data set, if it has several.
        dataset_split: split of the data set to read.
        column: key or column of the text in a row.
        min_frequency: how often a pair must occur to become a token.
        uncased: for embedders: text is lower-cased and normalised (NFKC), and the first word of a text gets a space
            before it, as every other word has one. Decoding then does not restore the text.
        n_phrases: how many of the tokens are pairs of words, such as "blood pressure"; needs uncased. A table of token
            vectors then knows more than single words.
        on_bad_row: what to do with a row that is invalid or has no string in the column (null is an empty document):
            stop with an error, or skip and count it.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise InputError(
            f"vocab_size is {vocab_size}; expected at least {MIN_VOCAB_SIZE}, for 256 bytes and the end-of-text token."
        )
    if min_frequency < 1:
        raise InputError(f"min_frequency is {min_frequency}; expected 1 or more.")
    if n_phrases and not uncased:
        raise InputError(f"n_phrases is {n_phrases}, which needs lower-case text; add --uncased.")
    if not 0 <= n_phrases <= vocab_size - MIN_VOCAB_SIZE:
        raise InputError(
            f"n_phrases is {n_phrases}; expected 0 to {vocab_size - MIN_VOCAB_SIZE}, because {MIN_VOCAB_SIZE} of the "
            f"{vocab_size} tokens are bytes and the end-of-text token."
        )
    target = Path(out)
    require_empty_folder(target)
    source = open_source(input, dataset, dataset_config, dataset_split, column, on_bad_row)
    backend = RustTokenizer(models.BPE())
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    if uncased:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=uncased)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - n_phrases,
        min_frequency=min_frequency,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    phrases = PhraseCounter()
    n = n_bad = 0

    def texts():  # type: ignore[no-untyped-def]
        nonlocal n, n_bad
        for piece in read_with_bar(source, "reading"):
            n += len(piece.text)
            n_bad += bool(piece.fault)
            if n_phrases:
                phrases.add(normalizer.normalize_str(piece.text))  # the backend is locked while it trains
            yield piece.text

    backend.train_from_iterator(texts(), trainer)
    if not n:
        raise InputError("The input holds no text to train a tokenizer on; give files with text.")
    # A phrase takes the space before it, as a word's token does, and is matched in whole words.
    found = phrases.best(n_phrases)
    backend.add_tokens([AddedToken(p, lstrip=True, single_word=True, normalized=True) for p in found])
    eos = backend.token_to_id(EOS)
    tokenizer = Tokenizer(backend, bos_id=eos, eos_id=eos)
    with atomic_folder(target) as folder:
        tokenizer.save(folder)
    print(
        f"vocabulary of {tokenizer.vocab_size:,} from {n:,} characters, tokenizer {tokenizer.fingerprint[:12]}"
    )
    if n_bad:
        print(f"skipped {n_bad:,} rows that cannot be used")
    if len(found) < n_phrases:
        print(f"fewer than the requested {n_phrases:,} phrases: {len(found):,}")
    if tokenizer.vocab_size - len(found) < vocab_size - n_phrases:
        print(f"fewer than the requested {vocab_size:,}: no other pair occurs {min_frequency} times")
