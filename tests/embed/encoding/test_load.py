"""`load_embedder`: GPTs, other architectures by sentence-transformers, and servers, over real sockets."""

import json
import shutil

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel

from embed import Encoder
from embed.encoding import remote_embedder
from embed.encoding.fingerprint import same
from embed.encoding.load import load_embedder
from embed.encoding.remote_embedder import KEY_VARIABLE
from embed.encoding.sentence_transformer import SentenceTransformerEmbedder
from gpt_core.common.errors import InputError
from tests.other_server import Other
from tests.tiny_models import TEXTS, reference_model, save_model

MODEL = {"data": [{"id": "tiny"}]}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A sentence-transformers folder of a BERT with random weights and prompts."""
    plain = save_model(tmp_path_factory.mktemp("plain"), "gpt2", eos_after_text=True)
    (plain / "model.safetensors").unlink()
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=320, max_position_embeddings=64, **size)).save_pretrained(plain)
    folder = tmp_path_factory.mktemp("models") / "bert"
    reference_model(plain, "mean", max_seq_length=48).save(str(folder))
    return folder


def test_another_architecture_has_the_vectors_of_sentence_transformers(bert):
    ours, theirs = load_embedder(bert), SentenceTransformer(str(bert), device="cpu")
    assert isinstance(ours, SentenceTransformerEmbedder)
    texts = [*TEXTS, ""]
    np.testing.assert_allclose(ours.encode_query(texts), theirs.encode_query(texts), atol=1e-6)
    np.testing.assert_allclose(ours.encode_document(texts), theirs.encode_document(texts), atol=1e-6)
    np.testing.assert_allclose(ours.encode(texts), theirs.encode(texts), atol=1e-6)
    few = ours.encode("one text", "document", truncate_dim=8)
    assert few.shape == (1, 8)
    np.testing.assert_allclose(np.linalg.norm(few), 1, atol=1e-6)
    assert ours.encode_document([]).shape == (0, 32)
    assert (ours.dimension, ours.max_tokens) == (32, 48)
    assert (ours.prompt("query"), ours.prompt("document")) == ("search for: ", "text: ")


def test_texts_beyond_its_context_are_counted(bert):
    ours = load_embedder(bert)
    reference = SentenceTransformer(str(bert), device="cpu").tokenizer
    texts = ["word " * n for n in range(1, 30)]
    ours.encode_document(texts)
    lengths = [len(ids) for ids in reference([f"text: {text}" for text in texts])["input_ids"]]
    assert ours.count_tokens(texts, "text: ") == lengths
    assert 0 < ours.n_truncated == sum(n > 48 for n in lengths) < len(texts)


def test_its_fingerprint_covers_weights_and_settings(bert, tmp_path):
    shutil.copytree(bert, tmp_path / "copy")
    assert load_embedder(bert).fingerprint == load_embedder(tmp_path / "copy").fingerprint
    settings = tmp_path / "copy" / "config_sentence_transformers.json"
    settings.write_text(settings.read_text().replace("search for: ", "ask: "))
    assert load_embedder(bert).fingerprint != load_embedder(tmp_path / "copy").fingerprint


def test_gpts_are_computed_here_unless_they_have_a_module_that_is_not_known(tmp_path):
    folder = tmp_path / "gpt"
    reference_model(save_model(tmp_path / "plain", "gpt2"), "mean").save(str(folder))
    assert isinstance(load_embedder(folder), Encoder)
    assert isinstance(load_embedder("zhizhi-mini"), Encoder)
    modules = json.loads((folder / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "", "type": "sentence_transformers.models.Normalize"})
    modules[2] |= {"path": "2_Dropout", "type": "sentence_transformers.models.Dropout"}
    (folder / "2_Dropout").mkdir()
    (folder / "2_Dropout" / "config.json").write_text('{"dropout": 0.1}')
    (folder / "modules.json").write_text(json.dumps(modules))
    assert isinstance(load_embedder(folder), SentenceTransformerEmbedder)


def test_a_folder_that_nothing_can_read_is_said(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "no such"}')
    with pytest.raises(InputError, match=r"is not a model that sentence-transformers can read"):
        load_embedder(tmp_path)
    with pytest.raises(InputError, match="There is no folder or cached model nothing"):
        load_embedder("nothing")


# --- servers ---


def vectors_of(texts, dimension=4):
    """A vector for each text that its characters determine."""
    return [
        [float(len(text) % 7 + 1), *(float(ord(c) % 9) for c in f"{text:<8}"[: dimension - 1])]
        for text in texts
    ]


def embeddings(body, dimension=4):
    found = vectors_of(body["input"], dimension)
    data = [{"index": i, "embedding": vector} for i, vector in enumerate(found)]
    return 200, {"data": data[::-1]}  # in any order


@pytest.fixture
def no_waits(monkeypatch):
    waited = []
    monkeypatch.setattr(remote_embedder.time, "sleep", waited.append)
    return waited


def test_a_servers_vectors_are_normalised_and_in_the_order_of_the_texts(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "s3cret")
    texts = [f"text {i}" * (i % 5) for i in range(70)]  # the first of five is empty
    with Other(embeddings, models=MODEL) as other:
        embedder = load_embedder(other.url + "/")
        vectors = embedder.encode_document(texts)
    expected = np.array(vectors_of(texts), dtype=np.float32)
    expected[::5] = 0
    np.testing.assert_allclose(
        vectors, expected / np.maximum(np.linalg.norm(expected, axis=1), 1)[:, None], atol=1e-6
    )
    assert (embedder.name, embedder.dimension) == (f"{other.url}#tiny", 4)
    sent = [body for path, _, body in other.requests if path == "/v1/embeddings"]
    assert {headers["Authorization"] for _, headers, _ in other.requests} == {"Bearer s3cret"}
    assert [len(body["input"]) for body in sent] == [3, 32, 24]
    assert {body["model"] for body in sent} == {"tiny"}


def test_fingerprints_of_servers_allow_rounding_but_no_other_model():
    def answers(factor, shift):
        def answer(body):
            found = [
                [factor * x + shift * (i % 2) for i, x in enumerate(v)] for v in vectors_of(body["input"])
            ]
            return 200, {"data": [{"index": i, "embedding": v} for i, v in enumerate(found)]}

        return answer

    with Other(models=MODEL) as other:
        prints = []
        for factor, shift in [(1, 0), (1.001, 0.001), (-1, 0), (1, 9)]:
            other.reply = answers(factor, shift)
            prints.append(load_embedder(other.url).fingerprint)
        other.reply = answers(1, 0)
        prints.append(load_embedder(f"{other.url}#tiny-2").fingerprint)
    assert [same(prints[0], one) for one in prints] == [True, True, False, False, False]


def test_passing_failures_are_tried_again(no_waits, capsys):
    replies = [(503, {}), (429, {}, {"Retry-After": "7"}), None]

    def answer(body):
        reply = replies.pop(0) if len(body["input"]) != 3 and replies else None
        return reply or embeddings(body)

    with Other(answer, models=MODEL) as other:
        embedder = load_embedder(other.url)
        np.testing.assert_allclose(embedder.encode_document("text"), embedder.encode_document("text"))
        assert no_waits == [1, 7]
        assert "answered /embeddings with status 429. Trying again in 7 s." in capsys.readouterr().err
        replies[:] = [(500, {})] * 9
        with pytest.raises(InputError, match="with status 500"):
            embedder.encode_document("text")
        assert no_waits == [1, 7, 1, 2, 4, 8]
        replies[:] = [(400, {"error": {"message": "too long; key s3cret"}})]
        with pytest.raises(InputError, match="with status 400: too long"):
            embedder.encode_document("text")
        assert len(no_waits) == 6
        replies[:] = [(500, {})] * 2
        with pytest.raises(InputError, match="with status 500"):
            embedder.encode_query("text")
        assert no_waits[6:] == [1]
    with pytest.raises(InputError, match="cannot be reached"):
        load_embedder("http://127.0.0.1:9/v1#tiny")


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((200, {"data": [{"index": 0, "embedding": [1.0] * 5}]}), r"vectors of 5 dimensions instead of 4"),
        ((200, {"data": []}), "answered 1 texts with 0 vectors"),
        ((200, {"data": [{"index": 1, "embedding": [1.0] * 4}]}), "answered 1 texts with 1 vectors"),
        (
            (200, b'{"data": [{"index": 0, "embedding": [1, NaN, 1, 1]}]}'),
            "OpenAI's API does|NaN or infinite",
        ),
        (
            (200, b'{"data": [{"index": 0, "embedding": [1, 1e999, 1, 1]}]}'),
            "OpenAI's API does|NaN or infinite",
        ),
        ((200, {"data": [{"index": 0, "embedding": [0.0] * 4}]}), "vectors that are zero"),
        ((200, b"<html>"), "something else than OpenAI's API does"),
        ((200, b"x" * 2**20), "with more than 1000 bytes"),
    ],
)
def test_wrong_responses_are_refused(monkeypatch, reply, said):
    with Other(embeddings, models=MODEL) as other:
        embedder = load_embedder(other.url)
        monkeypatch.setattr(remote_embedder, "MAX_BYTES", 1000)
        other.reply = lambda body: reply
        with pytest.raises(InputError, match=said):
            embedder.encode_document("text")


def test_vectors_of_any_length_are_normalised():
    def answer(body):
        data = [{"index": i, "embedding": [3e38, 4e38, 0, 0]} for i in range(len(body["input"]))]
        return 200, {"data": data}

    with Other(answer, models=MODEL) as other:
        np.testing.assert_allclose(load_embedder(other.url).encode("text"), [[0.6, 0.8, 0, 0]], atol=1e-6)


def test_wrong_urls_are_refused(monkeypatch):
    with pytest.raises(InputError, match=r"embedder is http://x\?key=1; expected a URL such as"):
        load_embedder("http://x?key=1")
    with pytest.raises(InputError, match=f"give a key in the environment's {KEY_VARIABLE}"):
        load_embedder("http://me:pass@x/v1")
    with Other(embeddings) as other, pytest.raises(InputError, match="has the models small, large; name one"):
        load_embedder(other.url)
    monkeypatch.setenv(KEY_VARIABLE, "schlüssel")
    with pytest.raises(InputError, match=f"{KEY_VARIABLE} has spaces or letters beyond ASCII"):
        load_embedder("http://x/v1")
