import gzip
import json
import lzma
from pathlib import Path

import pytest

from gpt_core.common.errors import InputError
from index.reading.document import Document
from index.reading.read import iter_documents
from index.reading.source_files import find_files


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_jsonl_reads_beir_keys_and_takes_the_others_for_metadata(tmp_path):
    rows = [
        {"_id": "a", "title": "T", "text": "one", "metadata": {"year": 1999}, "lang": "en"},
        {"id": 7, "title": None, "text": "知之"},
        {"text": "three", "number": 3},
    ]
    path = write(tmp_path / "c.jsonl", "\n\n".join(json.dumps(row) for row in rows))
    first, second, third = iter_documents([path])
    assert (first.id, first.title, first.text, first.metadata) == (
        "a",
        "T",
        "one",
        {"year": 1999, "lang": "en"},
    )
    assert (second.id, second.title, second.text, second.metadata) == ("7", "", "知之", {})
    assert (third.id, third.metadata) == (f"c.jsonl:{third.hash[:16]}", {"number": 3})


@pytest.mark.parametrize(("ending", "opener"), [(".gz", gzip.open), (".xz", lzma.open)])
def test_compressed_jsonl_is_read_and_refused_if_truncated(tmp_path, ending, opener):
    path = tmp_path / f"c.jsonl{ending}"
    with opener(path, "wt") as stream:
        stream.writelines(
            json.dumps({"_id": str(i), "text": f"text {i * i * 7919}"}) + "\n" for i in range(5000)
        )
    assert len(list(iter_documents([path]))) == 5000
    write(path, path.read_bytes()[:-2000])
    with pytest.raises(InputError, match=r"c\.jsonl.* is damaged after line \d+"):
        list(iter_documents([path]))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": x}', "line 2, is not valid JSON: Expecting value (character 10)."),
        (b'{"text": "x"', "line 2, is not valid JSON: Expecting ',' delimiter (character 14)."),
        (b'{"txt": "x"}', 'line 2: expected a JSON object whose key "text"'),
        (b'["text"]', "line 2: expected a JSON object"),
        (b'{"text": "\xff"}', "line 2, is not UTF-8"),
        (b'{"text": "x", "score": NaN}', "NaN is not a JSON value"),
        (b'{"text": "x \\ud83d"}', "surrogate"),
        (b'{"text": "x", "_id": null}', "the id to be a string or an integer"),
        (b'{"text": "x", "_id": ""}', "line 2: document ''"),
        (b'{"text": "x", "metadata": [1]}', "expected metadata to be an object"),
        (b'{"text": "x", "_id": "a"}', "another document has the id 'a'"),
        (b"[" * 100_000, "line 2, is not valid JSON"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "c.jsonl", b'{"_id": "a", "text": "good"}\n' + line + b"\n")
    documents = iter_documents([path])
    assert next(documents).id == "a"
    with pytest.raises(InputError, match=r"c\.jsonl") as error:
        next(documents)
    assert message in str(error.value)


def test_folders_are_walked_in_order_without_hidden_files(tmp_path):
    for name in ("b.txt", "a/z.md", "a/b/c.jsonl", ".git/x.txt", "a/.hidden.md", "pixel.png"):
        write(tmp_path / name, '{"text": "x"}' if name.endswith("jsonl") else "some text")
    assert [d.id.split(":")[0] for d in iter_documents([tmp_path])] == ["b.txt", "a/z.md", "a/b/c.jsonl"]
    assert find_files([tmp_path]).listing.skipped == [tmp_path / "pixel.png"]


def test_of_a_beir_folder_only_the_corpus_is_read(tmp_path):
    for name in ("corpus.jsonl.gz", "queries.jsonl"):
        with (gzip.open if name.endswith("gz") else open)(tmp_path / name, "wt") as stream:
            stream.write(json.dumps({"_id": name, "text": "x"}))
    assert [d.id for d in iter_documents([tmp_path])] == ["corpus.jsonl.gz"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"a\0b", "a.txt: it is not text: it contains a zero byte"),
        ("a.png", b"\x89PNG", "a.png is not a supported file; expected one of .jsonl"),
        ("folder/a.png", b"\x89PNG", "folder has no supported file"),
    ],
)
def test_files_that_are_not_text_are_refused(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(InputError) as error:
        list(iter_documents([path.parent if path.parent != tmp_path else path]))
    assert message in str(error.value)


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        list(iter_documents([tmp_path / "nowhere"]))


def test_a_file_is_read_once_and_files_of_one_name_have_different_ids(tmp_path):
    path = write(tmp_path / "a" / "x.txt", "one")
    write(tmp_path / "b" / "x.txt", "two")
    paths = [path, tmp_path / "a", tmp_path / "b"]
    assert [(d.id, d.text) for d in iter_documents(paths)] == [("x.txt", "one"), ("b/x.txt", "two")]


def test_lines_without_ids_are_named_by_their_content(tmp_path, capsys):
    path = write(tmp_path / "c.jsonl", '{"text": "plums"}\n{"text": "pears"}\n{"text": "plums"}\n')
    before = [d.id for d in iter_documents([path])]
    assert len(before) == 2
    assert "left out 1 rows without an id that repeat a row of their file" in capsys.readouterr().err
    write(path, '{"text": "figs"}\n' + path.read_text())
    after = [d.id for d in iter_documents([path])]
    assert after[1:] == before
    assert after[0] not in before


def test_the_hash_depends_on_the_content_only():
    document = Document("a", "text", "title", {"x": 1, "y": [2]}, source="here")
    assert document.hash == Document("b", "text", "title", {"y": [2], "x": 1}, source="there").hash
    others = [
        Document("a", "text ", "title"),
        Document("a", "text", "t"),
        Document("a", "text", "title", {"x": 2}),
    ]
    assert len({document.hash, *(other.hash for other in others)}) == 4


@pytest.mark.parametrize("metadata", [{"x": float("nan")}, {"x": object()}, {"x": {1, 2}}])
def test_metadata_that_json_cannot_represent_is_refused(metadata):
    with pytest.raises(InputError, match="JSON cannot represent its metadata"):
        Document("a", "text", metadata=metadata)
