"""The options of a build, which are those of the command."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from embed.network.config import FusionKind
from gpt_core.common.errors import InputError
from index.reading.source_files import Below, is_stream, source_of


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """What is built, of what, and how.

    Attributes:
        index: folder of the index.
        input: files and folders: text, Markdown, HTML, PDF, Word, PowerPoint, OpenDocument, RTF, EPUB, Jupyter
            notebooks, source code; .jsonl (also .gz, .xz; "text", optionally "_id", "title"; other keys are metadata);
            rows of CSV, TSV, Parquet and spreadsheets; folders are searched recursively. "-" reads JSON lines from
            standard input, "datasets:NAME[/CONFIG][:SPLIT]" a dataset of the Hugging Face hub or in a folder.
        include: read only those files of folders that match a pattern, written as in a .gitignore file: *.pdf, docs/.
        exclude: do not read files of folders that match a pattern.
        gitignore: do not read what the .gitignore files in the folders leave out.
        embedder: model folder, known name, or URL of a server with OpenAI's embeddings, such as
            http://127.0.0.1:8080/v1#MODEL; default: the existing index's embedder, or zhizhi-mini.
        max_tokens: maximum tokens per passage, without the title; fixed when the index is created, 256 by default.
        overlap: maximum tokens that neighbouring passages share; fixed when the index is created, max_tokens / 8 by
            default.
        passages_per_document: index only the first n passages of each document; fixed when the index is created.
        rows_per_document: rows of a table without a column `text` that are one document; fixed when the index is
            created, 1 by default.
        fusion: how hybrid search combines the dense and lexical scores; fixed when the index is created; default: the
            embedder's.
        refit_map: fit the corpus map (whitening) again at the end; in a new index it is always fitted.
        delete_missing: delete the documents of files and lines that are below the input no longer. Documents from
            elsewhere are kept.
        delete: files, folders and other inputs whose documents are deleted first; they need not exist any more.
        strict: stop at a file that cannot be read, before anything is written.
        faiss: how the vectors are searched: auto (exactly up to 200 MB of them), Flat (exactly), or a FAISS factory
            string such as IVF1024,SQ8; kept in the index.
        recall: least share of the nearest passages that approximate search must find, .95 by default; kept in the
            index.
        store: where the nearest vectors are searched: faiss, in the index's folder, or the address of a collection of
            Milvus, milvus://HOST:PORT/COLLECTION or milvus:///PATH/FILE.db; kept in the index. Default: as before.
        watch: then follow the input, and bring the index up to date after each change, until Ctrl-C.
        dry_run: print what would be added, updated, deleted and skipped, and write nothing.
        runner: where passages are encoded: local, in this process, and on the other ranks if torchrun started several;
            ray, on the cluster of RAY_ADDRESS, else on all CPUs of this machine. This process alone writes the index.

    Raises:
        InputError: for options that do not go together.
    """

    index: str
    input: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    gitignore: bool = False
    embedder: str | None = None
    max_tokens: int | None = None
    overlap: int | None = None
    passages_per_document: int | None = None
    rows_per_document: int | None = None
    fusion: FusionKind | None = None
    refit_map: bool = False
    delete_missing: bool = False
    delete: tuple[str, ...] = ()
    strict: bool = False
    faiss: str | None = None
    recall: float | None = None
    store: str | None = None
    watch: bool = False
    dry_run: bool = False
    runner: Literal["local", "ray"] = "local"

    def __post_init__(self) -> None:
        if not self.input and not self.delete:
            raise InputError("--input is empty; give at least one file or folder.")
        if self.watch and (self.dry_run or not self.input):
            raise InputError(
                "--watch follows the --input and writes; leave out --dry_run, and give an --input."
            )

        if self.watch and any(map(is_stream, self.input)):
            raise InputError(
                "--watch follows files and folders; standard input and datasets cannot be watched."
            )

    @cached_property
    def below(self) -> Below:
        """The input's files and folders."""
        return Below(map(source_of, self.input))

    @property
    def of_texts(self) -> dict[str, Any]:
        """The settings of passages and rows, which are fixed when the index is created; None: not given."""
        return {
            "max_tokens": self.max_tokens,
            "overlap": self.overlap,
            "passages_per_document": self.passages_per_document,
            "rows_per_document": self.rows_per_document,
        }
