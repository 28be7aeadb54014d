"""An index finds its embedder again: from another working directory, moved together with it, in a run that goes on."""

import json
import shutil
from pathlib import Path

import pytest

from gpt_core.common.errors import InputError
from gpt_core.common.files import sha256_file
from gpt_core.hub import run_folder
from index.build_index import build_index
from index.building.options import BuildOptions
from index.index import Index
from index.search_index import search_index
from tests.tiny_models import save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    save_model(folder, "gpt2")
    (folder / "embedder.json").write_text("{}")
    return folder


@pytest.fixture
def home(tmp_path, model, monkeypatch):
    """The working directory, with a model, a document and an index whose embedder is given by a relative path."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    shutil.copytree(model, "model")
    Path("a.txt").write_text("To know what you know.")
    return home


def build(embedder: str) -> None:
    build_index(BuildOptions(input=("a.txt",), index="index", embedder=embedder, max_tokens=32))


def test_a_relative_embedder_is_found_from_another_folder(home, tmp_path, monkeypatch, capsys):
    build("model")
    monkeypatch.chdir(tmp_path)
    search_index("know", index="home/index")
    assert "a.txt" in capsys.readouterr().out


def test_an_index_and_its_embedder_move_together(home, tmp_path, monkeypatch, capsys):
    build("model")
    monkeypatch.chdir(tmp_path)
    home.rename(tmp_path / "moved")
    search_index("know", index="moved/index")
    assert "a.txt" in capsys.readouterr().out


def test_a_missing_embedder_is_said_with_the_index(home):
    build("model")
    shutil.rmtree("model")
    with (
        Index.open("index") as index,
        pytest.raises(
            InputError, match=r"index was built with model \(.*open the index with the folder .*no folder"
        ),
    ):
        index.search("know")


def checkpoint(model: Path, step: int, loss: float) -> Path:
    path = Path("run", f"step-{step}")
    shutil.copytree(model, path)
    (path / "embedder.json").write_text(
        json.dumps({"max_tokens": 32 + step})
    )  # each step has another fingerprint
    manifest = {one.name: sha256_file(one) for one in path.iterdir()}
    state = {"version": run_folder.CHECKPOINT_VERSION, "figures": {"val_loss": loss}, "manifest": manifest}
    state["checksum"] = run_folder.state_checksum(state)
    (path / "state.json").write_text(json.dumps(state))
    return path


def test_a_run_that_goes_on_leaves_its_index_usable(home, model, capsys):
    first = checkpoint(model, 1, loss=2.0)
    build("run")
    better = checkpoint(model, 2, loss=1.0)
    assert run_folder.best_or_latest("run") == better
    search_index("know", index="index")
    build_index(BuildOptions(input=("a.txt",), index="index"))
    assert "1 unchanged" in capsys.readouterr().out
    shutil.rmtree(first)
    with pytest.raises(InputError, match="index was built with run"):
        search_index("know", index="index")
