"""Files of each format: their text as Markdown, titles, pages; broken files."""

import csv
import json
import os
import time
import zipfile
from pathlib import Path

import pytest
import xlsxwriter

from gpt_core.common.errors import InputError
from index.reading import extract as extracting
from index.reading import worker
from index.reading.document import Document
from index.reading.extract import READERS, extract
from index.reading.formats import archive
from index.reading.formats.encoding import decode
from index.reading.formats.extracted import Unreadable
from index.reading.formats.html import html_to_markdown
from index.reading.formats.tables import read_tables
from index.reading.read import iter_documents
from index.reading.worker import stop_worker
from tests.index.reading.made_files import (
    make_docx,
    make_epub,
    make_notebook,
    make_odt,
    make_pdf,
    make_pptx,
    make_xlsx,
    make_zip,
    paragraph,
)


@pytest.fixture(autouse=True)
def _new_worker():
    """Files are read in a process that is forked from this one, with what a test has changed."""
    stop_worker()
    yield
    stop_worker()


def read(path: Path) -> Document:
    (document,) = iter_documents([path])
    return document


def test_pdf_has_paragraphs_headings_pages_and_no_running_heads(tmp_path):
    pages = [
        [(760, 9, "THE MANUAL"), (700, 14, f"{n} Chapter {word}"), (670, 10, f"Text {n} begins"),
         (658, 10, "and goes on."), (620, 10, "A new paragraph."), (40, 9, f"- {n} -")]
        for n, word in enumerate(("one", "two", "three"), 1)
    ]  # fmt: skip
    found = read(make_pdf(tmp_path / "manual.pdf", pages, title="Manual", outline="Chapter one"))
    assert found.title == "Manual"
    assert found.text.split("\n\n") == [
        "# 1 Chapter one", "Text 1 begins\nand goes on.", "A new paragraph.",
        "2 Chapter two", "Text 2 begins\nand goes on.", "A new paragraph.",
        "3 Chapter three", "Text 3 begins\nand goes on.", "A new paragraph.",
    ]  # fmt: skip
    assert [
        str(found.pages.of(i, i + 4)) for i in (0, found.text.index("Text 2"), found.text.index("Text 3"))
    ] == [
        "page 1",
        "page 2",
        "page 3",
    ]
    assert str(found.pages.of(0, len(found.text))) == "pages 1–3"
    assert found.pages.of(10, len(found.text)).breaks == found.pages.starts[1:]


@pytest.mark.parametrize(
    "title", ["untitled", "Microsoft Word - report.doc", "thesis.dvi", "<48656C6C6F>", ""]
)
def test_a_title_that_a_program_has_made_up_is_not_taken(tmp_path, title):
    assert read(make_pdf(tmp_path / "report.pdf", [[(700, 10, "Text.")]], title=title)).title == "report"


def test_html_loses_boilerplate_and_inline_marks_and_keeps_headings_code_and_tables():
    html = """<html><head><title>Page &amp; Co</title><script>x()</script></head><body><nav>Home</nav>
      <main><h1>Head<a class="headerlink">¶</a></h1>
      <p>See <a href="x">the <b>bold</b> link</a> and <code>a_b</code>.</p>
      <pre><span class="k">if</span> a:\n    b()</pre><table><tr><th>n<th>m<tr><td>1<td>2</table>
      <ul><li>one<li>two</ul></main><footer>Impressum</footer></body></html>"""
    found = html_to_markdown(html)
    assert found.title == "Page & Co"
    assert found.text.split("\n\n") == [
        "# Head", "See the bold link and a_b.", "```\nif a:\n    b()\n```", "| n | m |\n| --- | --- |\n| 1 | 2 |",
        "- one\n- two",
    ]  # fmt: skip


def test_html_is_read_in_its_declared_encoding(tmp_path):
    path = tmp_path / "a.html"
    path.write_bytes('<meta charset="gbk"><title>题</title><p>知之为知之</p>'.encode("gbk"))
    assert (read(path).title, read(path).text) == ("题", "知之为知之")


def test_docx_has_headings_and_tables(tmp_path):
    rows = "".join(
        f"<w:tr>{''.join(f'<w:tc>{paragraph(cell)}</w:tc>' for cell in row)}</w:tr>"
        for row in (("k", "v"), ("a", "1"))
    )
    body = (
        paragraph("Chapter", "Heading1")
        + paragraph("Words.")
        + f"<w:tbl>{rows}</w:tbl>"
        + paragraph("Part", "Heading2")
    )
    found = read(make_docx(tmp_path / "a.docx", body, title="The Report"))
    assert found.title == "The Report"
    assert found.text.startswith("# Chapter\n\nWords.\n\n| ")
    assert "| a | 1 |" in found.text
    assert found.text.endswith("\n\n## Part")


def test_pptx_has_slides_tables_and_notes(tmp_path):
    found = read(make_pptx(tmp_path / "a.pptx", [("First", "one"), ("Second", "two")]))
    assert found.title == "First"
    assert "## Second\n\ntwo\n\n| cell of | Second |\n\nA note on Second." in found.text
    assert str(found.pages.of(found.text.index("## Second"), len(found.text))) == "slide 2"


def test_odt_and_odp(tmp_path):
    body = (
        '<text:h text:outline-level="2">Head</text:h><text:p>a<text:s text:c="2"/>b<text:span>c</text:span></text:p>'
        "<text:list><text:list-item><text:p>item</text:p></text:list-item></text:list>"
        "<table:table><table:table-row><table:table-cell><text:p>x</text:p></table:table-cell></table:table-row></table:table>"
    )
    found = read(make_odt(tmp_path / "a.odt", body, title="T"))
    assert (found.title, found.text) == ("T", "## Head\n\na  bc\n\n- item\n\n| x |")
    slides = "".join(f"<draw:page><text:p>slide {word}</text:p></draw:page>" for word in ("one", "two"))
    found = read(make_odt(tmp_path / "a.odp", slides, kind="presentation"))
    assert found.text == "slide one\n\nslide two"
    assert str(found.pages.of(12, 20)) == "slide 2"


def test_epub_has_its_chapters_in_order(tmp_path):
    chapters = {"b 1.xhtml": "<h1>One</h1><p>first</p>", "a.xhtml": "<h1>Two</h1><p>second</p>"}
    found = read(make_epub(tmp_path / "a.epub", chapters, title="Book", author="N. N."))
    assert (found.title, found.text) == ("Book", "# One\n\nfirst\n\n# Two\n\nsecond")
    assert found.metadata == {"author": "N. N.", "language": "en"}


def test_rtf_notebooks_and_code(tmp_path):
    (tmp_path / "a.rtf").write_text(r"{\rtf1\ansi\b Bold\b0  caf\'e9\par Next}")
    assert read(tmp_path / "a.rtf").text == "Bold café\nNext"
    code = {"cell_type": "code", "source": ["x = 1\n", "x"], "outputs": [{"data": {"text/plain": ["1"]}}]}
    cells = [{"cell_type": "markdown", "source": "# Title\n\nWords."}, code]
    found = read(make_notebook(tmp_path / "a.ipynb", cells))
    assert found.title == "Title"
    assert found.text == "# Title\n\nWords.\n\n```python\nx = 1\nx\n```\n\n```\n1\n```"
    (tmp_path / "a.py").write_text("import os\n\n\ndef f():\n    return 1\n")
    found = read(tmp_path / "a.py")
    assert (found.title, found.text) == ("a.py", "```py\nimport os\n\n\ndef f():\n    return 1\n```")
    place = found.text.index("def f")
    assert str(found.pages.of(place, found.text.index("\n```"))) == "lines 4–5"


def test_rows_of_tables_are_documents(tmp_path):
    rows = [["name", "year", "version"], ["Ada", 1815, "3.10"], ["", "", ""], ["Kurt", 1906, "2.5"]]
    made = make_xlsx(tmp_path / "people.xlsx", {"born": rows, "empty": []})
    first, second = iter_documents([made])
    assert first.text == "name: Ada\nyear: 1815\nversion: 3.10"
    assert first.title == "people › born"
    assert first.metadata == {"sheet": "born", "name": "Ada", "year": 1815, "version": "3.10"}
    assert second.metadata["version"] == 2.5
    assert first.id == f"people.xlsx:{first.hash[:16]}"
    text = 'name;words\r\nAda;"a; b"\r\n'
    (tmp_path / "german.csv").write_bytes(text.encode())
    assert read(tmp_path / "german.csv").text == "name: Ada\nwords: a; b"
    (tmp_path / "beir.tsv").write_text("_id\ttitle\ttext\tyear\n007\tT\tone\t1999\n")
    found = read(tmp_path / "beir.tsv")
    assert (found.id, found.title, found.text, found.metadata) == ("007", "T", "one", {"year": 1999})


def test_rows_of_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(
        pa.table({"text": ["one", None], "n": [1.5, float("nan")], "d": [{"a": 1}, None]}),
        tmp_path / "a.parquet",
    )
    found = list(iter_documents([tmp_path / "a.parquet"]))
    assert (found[0].text, found[0].metadata) == ("one", {"n": 1.5, "d": {"a": 1}})


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("café, thé", "cp1252"),
        ("知之为知之，不知为不知，是知也。", "gb18030"),
        ("知之為知之，不知為不知，是知也。", "big5"),
        ("これはテストです。日本語の文章を読みます。", "shift_jis"),
        ("안녕하세요 반갑습니다 한국어 문장입니다", "euc_kr"),
        ("Привет, как дела? Это проверка кодировки.", "cp1251"),
        ("知之 and words", "utf-16"),
    ],
)
def test_old_encodings_are_found(tmp_path, text, encoding, capsys):
    path = tmp_path / "old.txt"
    path.write_bytes(text.encode(encoding))
    assert read(path).text == text
    assert (
        f"1 files are not UTF-8 and were read in the encoding in parentheses: {path} ({encoding})"
        in capsys.readouterr().err
    )


def test_binary_junk_is_no_text():
    junk = bytes(b for b in os.urandom(4000) if b)
    for data in (junk, b"a\0b"):
        with pytest.raises(Unreadable, match="it is not text"):
            decode(data)


def broken_files(folder: Path) -> dict[str, str]:
    """Broken files, and what is said of each."""
    blank = make_pdf(folder / "blank.pdf", [[], []])
    whole = make_pdf(folder / "whole.pdf", [[(700, 10, "Text.")]]).read_bytes()
    (folder / "whole.pdf").unlink()
    (folder / "cut.pdf").write_bytes(whole[:60])
    for ending in ("pdf", "docx", "pptx", "odt", "epub", "xlsx", "xls", "ipynb"):
        (folder / f"junk.{ending}").write_bytes(b"\x93\x07junk" * 50)
        (folder / f"empty.{ending}").touch()
    make_zip(folder / "other.docx", {"a.txt": "no document"})
    make_zip(folder / "other.odt", {"content.xml": "<a><b></a>"})
    make_zip(folder / "other.epub", {"META-INF/container.xml": "<c/>"})
    (folder / "list.ipynb").write_text("[]")
    (folder / "deep.ipynb").write_text("[" * 100_000)
    entities = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    laughs = f'<!DOCTYPE a [<!ENTITY e0 "ha">{entities}]><a>&e11;</a>'
    make_zip(folder / "laughs.odt", {"content.xml": laughs})
    assert blank.exists()
    return {
        "blank.pdf": "its 2 pages have no text; scanned pages need OCR",
        "cut.pdf": "it is no PDF file, or damaged",
        "empty.docx": "it is damaged, or no archive",
        "empty.xlsx": "it is damaged, or no archive",
        "list.ipynb": "it is no Jupyter notebook",
        "other.epub": "it has no part",
        "laughs.odt": "its XML is damaged",
    }


def test_broken_files_of_a_folder_are_skipped_and_named(tmp_path, capsys):
    expected = broken_files(tmp_path)
    n_broken = len(list(tmp_path.iterdir()))
    (tmp_path / "good.txt").write_text("good")
    assert [document.id for document in iter_documents([tmp_path])] == ["good.txt"]
    assert f"skipped {n_broken} files that cannot be read: " in capsys.readouterr().err
    for name, reason in expected.items():
        with pytest.raises(InputError, match=rf"{name}: {reason}"):
            list(iter_documents([tmp_path / name]))


def test_a_file_that_is_encrypted_or_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    path = make_zip(tmp_path / "a.odt", {"content.xml": "<a>" + " " * 100_000 + "</a>"})
    monkeypatch.setattr(archive, "MAX_UNPACKED", 50_000)
    with pytest.raises(Unreadable, match=r"it unpacks to 0\.0 GB; the most is 0\.0 GB"):
        extract(path)
    data = bytearray(make_zip(tmp_path / "b.odt", {"content.xml": "<a/>"}).read_bytes())
    for mark, place in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(mark) + place] |= 1  # the flag of encryption
    (tmp_path / "b.odt").write_bytes(data)
    with pytest.raises(Unreadable, match=r"b\.odt: it is encrypted"):
        extract(tmp_path / "b.odt")


def test_a_file_that_changes_while_it_is_read_is_not_taken(tmp_path, monkeypatch):
    path = tmp_path / "a.rtf"
    path.write_text("{\\rtf1 one}")

    def slow(path: Path) -> object:
        found = READERS[".odt"]
        path.write_text("{\\rtf1 one and two}")
        return found and extracting.Extracted("one")

    monkeypatch.setitem(READERS, ".rtf", slow)
    with pytest.raises(Unreadable, match="it changed while it was read"):
        extract(path)


def test_an_error_inside_a_library_is_a_damaged_file(tmp_path, monkeypatch):
    def fails(path: Path) -> None:
        raise AssertionError("list index out of range")

    monkeypatch.setitem(READERS, ".rtf", fails)
    (tmp_path / "a.rtf").write_text("x")
    with pytest.raises(
        Unreadable, match=r"a\.rtf: it is damaged \(AssertionError: list index out of range\)"
    ):
        extract(tmp_path / "a.rtf")


def test_without_the_extra_such_files_are_skipped_and_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "pypdfium2", None)
    make_pdf(tmp_path / "a.pdf", [[(700, 10, "Text.")]])
    (tmp_path / "b.txt").write_text("text")
    assert [document.id for document in iter_documents([tmp_path])] == ["b.txt"]
    assert (
        "a.pdf: pypdfium2 is not installed; install it with: pip install 'zhizhi[documents]'"
        in capsys.readouterr().err
    )
    with pytest.raises(InputError, match=r"zhizhi\[documents\]"):
        list(iter_documents([tmp_path / "a.pdf"]))


def test_a_csv_file_of_one_enormous_line_is_read(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "n"], ["x" * 5_000_000, "1"]])
    assert len(read(tmp_path / "a.csv").text) == 5_000_000


def test_a_running_title_and_page_numbers_are_dropped_and_rows_of_numbers_are_kept(tmp_path):
    rows = [[(700 - 20 * i, 10, f"{n * 7 + i} {n * i} 3.5") for i in range(5)] for n in range(1, 5)]
    found = read(make_pdf(tmp_path / "table.pdf", rows))
    assert len(found.text.split("\n\n")) == 4 * 5
    pages = [
        [(760, 9, "Chapter 3"), (700, 10, f"Text {n * n}."), (40, 9, f"page {n + 6} of 90")]
        for n in range(1, 6)
    ]
    found = read(make_pdf(tmp_path / "manual.pdf", pages))
    assert found.text.split("\n\n") == [f"Text {n * n}." for n in range(1, 6)]


def test_tables_inside_tables_are_read_once(tmp_path):
    inner = "<text:p>inner</text:p>"
    for _ in range(25):
        row = f"<table:table-row><table:table-cell>{inner}</table:table-cell></table:table-row>"
        inner = f"<table:table>{row}</table:table>"
    assert read(make_odt(tmp_path / "a.odt", inner)).text.count("inner") == 1
    row = '<table:table-cell table:number-columns-repeated="2"><text:p>a</text:p></table:table-cell><table:table-cell/>'
    row = f"<table:table-row>{row}</table:table-row>"
    table = f"<table:table><table:table-header-rows>{row}</table:table-header-rows></table:table>"
    assert read(make_odt(tmp_path / "b.odt", table)).text == "| a | a |  |"
    spaces = '<text:p>x<text:s text:c="2000000000"/>y</text:p>'
    assert len(read(make_odt(tmp_path / "c.odt", spaces)).text) == 102


def test_line_numbers_count_only_line_ends(tmp_path):
    (tmp_path / "a.py").write_text("a = 1\n\f\nb = '\u2028'\r\nc = 3\nzebra = 4\n", newline="")
    found = read(tmp_path / "a.py")
    place = found.text.index("zebra")
    assert str(found.pages.of(place, place + 5)) == "line 5"


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<body><form><p>All of it.</p></form></body>", "All of it."),
        ("<p>Real text.</p><main></main>", "Real text."),
        ("<body><p>" + "Long text. " * 20 + "</p><article>A teaser.</article></body>", "Long text. " * 20),
    ],
)
def test_html_is_not_lost_to_an_empty_main_part(html, text):
    assert text.strip() in html_to_markdown(html).text


def test_a_book_without_one_of_its_chapters_is_read(tmp_path):
    chapters = {"a.xhtml#top": "<p>x</p>", "b.xhtml": "<p>second</p>"}
    path = make_epub(tmp_path / "a.epub", chapters)
    assert read(path).text == "second"
    path = make_epub(tmp_path / "b.epub", {"a.xhtml": "<p>first</p>"}, fragment="#part")
    assert read(path).text == "first"


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('"Name, first";"x,y,z";n\nAda;1;2\n', [{"Name, first": "Ada", "x,y,z": "1", "n": "2"}]),
        ("\n\na;b\n1;2\n", [{"a": "1", "b": "2"}]),
        ("a,a,,b\n1,2,3,4,5\n", [{"a": "1", "a 2": "2", "column 3": "3", "b": "4", "column 5": "5"}]),
        ("sep=;\na;b\n1;2\n", [{"a": "1", "b": "2"}]),
    ],
)
def test_tables_of_text_as_programs_write_them(tmp_path, text, rows):
    (tmp_path / "a.csv").write_text(text)
    (sheet,), _ = read_tables(tmp_path / "a.csv", [].append)
    assert list(sheet.rows) == rows


def test_a_sheet_with_too_many_cells_is_refused(tmp_path):
    with xlsxwriter.Workbook(str(tmp_path / "a.xlsx")) as book:
        sheet = book.add_worksheet("far")
        sheet.write(0, 0, "near")
        sheet.write(1_048_575, 16_383, "far")
    said = r"its sheet far has 1,048,576 rows and 16,384 columns|more than 4 GB of memory"
    with pytest.raises(InputError, match=said):
        list(iter_documents([tmp_path / "a.xlsx"]))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("time.sleep(60)", "reading it took more than 0 s"),
        ("os.kill(os.getpid(), 9)", "its reader crashed, or needed more than 4 GB of memory"),
        ("bytearray(9 << 30)", "it needs more than 4 GB of memory"),
    ],
)
def test_a_reader_that_hangs_crashes_or_takes_all_memory_costs_one_file(
    tmp_path, monkeypatch, capsys, body, said
):
    code = compile(body, "reader", "exec")
    monkeypatch.setitem(READERS, ".rtf", lambda path: exec(code, {"time": time, "os": os}))
    monkeypatch.setattr(worker, "SECONDS", 0.4)
    (tmp_path / "a.rtf").write_text("x")
    (tmp_path / "b.odt").touch()
    make_odt(tmp_path / "c.odt", "<text:p>read</text:p>")
    assert [document.text for document in iter_documents([tmp_path])] == ["read"]
    assert f"a.rtf: {said}" in capsys.readouterr().err


def test_a_notebook_of_odd_values_and_a_damaged_archive_cost_one_file(tmp_path, capsys):
    kernel = '{"kernelspec": {"language": "\\ud800"}}'
    (tmp_path / "a.ipynb").write_text(
        f'{{"cells": [{{"cell_type": "raw", "source": "x"}}], "metadata": {kernel}}}'
    )
    (tmp_path / "b.jsonl.gz").write_bytes(os.urandom(100))
    (tmp_path / "c.csv").write_text("text,metadata\nx,y\n")
    make_notebook(tmp_path / "d.ipynb", [{"cell_type": "code", "source": "1", "outputs": [{"data": None}]}])
    (tmp_path / "e.txt").write_text("good")
    assert [document.id for document in iter_documents([tmp_path])] == ["d.ipynb", "e.txt"]
    assert "skipped 3 files that cannot be read" in capsys.readouterr().err


def test_every_kind_of_file_in_one_folder(tmp_path):
    make_pdf(tmp_path / "a.pdf", [[(700, 10, "Text.")]])
    make_docx(tmp_path / "a.docx", paragraph("Text."))
    (tmp_path / "a.html").write_text("<p>Text.")
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "Text."}))
    ids = [document.id.partition(":")[0] for document in iter_documents([tmp_path])]
    assert ids == ["a.docx", "a.html", "a.jsonl", "a.pdf"]
    assert zipfile.is_zipfile(tmp_path / "a.docx")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ('name,note\nAda,"first\nKurt,x\nAlan,y\n', [2]),
        ('\n\nname;note\nAda;"a ""b"" c"\nKurt;"x\n', [5]),
        ('sep=;\nname;note\nAda;"x', [3]),
        ('"name,note\nAda,x\n', [1]),
        ('name,note\nAda,"two\nlines"\n', []),
        ('name,note\nAda,5" nails\n', []),
        ('name,note\nAda,x\n"Kurt"y,"z\nw"\n', []),
        ("name,note", []),
        ("", []),
    ],
)
def test_a_quotation_mark_that_is_never_closed_is_reported(tmp_path, text, lines):
    (tmp_path / "a.csv").write_text(text)
    found: list[int] = []
    for sheet in read_tables(tmp_path / "a.csv", found.append)[0]:
        list(sheet.rows)
    assert found == lines
