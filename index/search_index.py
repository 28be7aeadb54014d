"""The command that searches an index."""

import json as json_library
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import tyro

from embed.encoding.rerank import load_reranker
from gpt_core.common.terminal import printable
from index.index import Index
from index.search.explanation import Explanation
from index.search.filter_words import parse_filter
from index.search.rank import Hits
from index.search.search import N_RERANKED, Mode


def search_index(
    query: str,
    /,
    *,
    index: str,
    k: Annotated[int, tyro.conf.arg(aliases=["-k"])] = 10,
    mode: Mode = "hybrid",
    filter: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    offset: int = 0,
    per_document: int | None = None,
    diversity: float = 0.0,
    explain: bool = False,
    rerank: str | None = None,
    n_reranked: int = N_RERANKED,
    embedder: str | None = None,
    json: bool = False,
) -> None:
    """Search an index.

    Args:
        query: text to search for.
        index: folder of the index.
        k: number of passages to return.
        mode: hybrid (BM25 and vectors), dense (vectors only) or lexical (BM25 only; needs no model).
        filter: field=value, or with !=, >=, <=, > or <, on the documents' metadata or doc_id. Repeat the option for
            several conditions: all fields must match; several values of one field are alternatives. Texts compare
            character by character, numbers as numbers; a year, month or day compares with ISO dates (date>=2024,
            date<=2024-05, which includes all of May). A field inside an object is author.name. Or a filter in JSON, as
            the API takes it: {"$or": [{"year": {"gt": 2020}}, {"title": {"contains": "draft"}}]}.
        offset: number of best passages that are left out.
        per_document: at most so many passages of one document.
        diversity: 0 to 1; above 0, a passage counts less the more it is like those before it.
        explain: print how each score comes about: the share of vectors and of BM25, and each word's share of BM25.
        rerank: folder or name of a language model that orders the best passages again, by the log-probability of the
            query after each; slow.
        n_reranked: number of passages that it orders.
        embedder: model folder, if it has moved since the index was built.
        json: print one JSON object instead of text.
    """
    wanted = parse_filter(list(filter)) if filter else None
    with Index.open(index, embedder) as found:
        hits = found.search(
            query,
            k,
            mode,
            wanted,
            offset=offset,
            per_document=per_document,
            diversity=diversity,
            explain=explain,
            rerank=load_reranker(rerank) if rerank else None,
            n_reranked=n_reranked,
        )
        if wanted and not hits and (unknown := found.unknown_fields(wanted)):
            print(f"no document has the field {', '.join(map(repr, unknown))}", file=sys.stderr)
        if mode != "lexical" and found.encoder and found.encoder.n_truncated:
            limit = found.encoder.max_tokens
            print(f"the query was truncated to the embedder's {limit} tokens", file=sys.stderr)
    _print(query, mode, hits, json)


def _print(query: str, mode: Mode, hits: Hits, json: bool) -> None:
    if json:
        result = {"query": query, "mode": mode, "exact": hits.exact, "hits": [asdict(hit) for hit in hits]}
        print(json_library.dumps(result, ensure_ascii=False))
        return
    if not hits:
        print("nothing found", file=sys.stderr)
    width = min(shutil.get_terminal_size().columns, 110)
    for rank, hit in enumerate(hits, 1):
        scores = [f"dense {hit.dense:.3f}"] if hit.dense is not None else []
        scores += [f"lexical {hit.lexical:.2f}"] if hit.lexical is not None else []
        scores += [f"re-ranked {hit.reranked:.2f}"] if hit.reranked is not None else []
        path = " › ".join(dict.fromkeys([hit.title or hit.doc_id, *hit.headings]))
        pages = f", {hit.pages}" if hit.pages else ""
        name = printable(f"{path}{pages}  [{hit.passage_id}]")
        print(f"{rank:2}. {hit.score:.4f}  {name}  {', '.join(scores)}")
        text = textwrap.shorten(printable(hit.text), 3 * width - 30)
        print(textwrap.indent(textwrap.fill(text, width - 4), "    "))
        if hit.explanation:
            print(textwrap.indent("\n".join(_explained(hit.explanation)), "      "))


def _explained(explanation: Explanation) -> Iterator[str]:
    """The parts of a hit's score, a line for each."""
    for name, share in (("vectors", explanation.dense), ("words", explanation.lexical)):
        if share is None:
            continue
        how = f"{share.score:.4f}"
        if share.rank is not None:
            how = f"rank {share.rank}"
        elif (share.weight, share.offset, share.scale) != (1, 0, 1):
            how = f"{share.weight:.2f} · ({how} - {share.offset:.4f}) / {share.scale:.4f}"
        yield f"{share.share:8.4f}  {name}: {how}"
    for term in explanation.terms:
        counts = f"{term.frequency} × in the passage, {term.in_query} × in the query"
        yield f"{term.share:8.4f}  of BM25: {printable(term.words)}, {counts}, idf {term.idf:.3f}"
