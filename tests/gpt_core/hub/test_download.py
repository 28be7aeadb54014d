"""The Hugging Face hub: which files of a repository are fetched, and fetching them from a server."""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from gpt_core.common.errors import InputError
from gpt_core.hub.download import model_files

ROOT = Path(__file__).parents[3]
SMALL = ["README.md", "config.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "vocab.json"]
GPT2 = ["64-8bits.tflite", "flax_model.msgpack", "rust_model.ot", "tf_model.h5", "onnx/decoder_model.onnx"]
GPT2 += ["onnx/config.json", "onnx/tokenizer.json", "generation_config.json", ".gitattributes"]
EMBEDDER = ["1_Pooling/config.json", "config_sentence_transformers.json", "modules.json"]
SGPT = ["added_tokens.json", "sentence_bert_config.json", "special_tokens_map.json"]
REPOSITORIES = {  # files of a repository, and those of them that are not fetched
    "gpt2": ([*SMALL, *GPT2, "model.safetensors", "pytorch_model.bin"], {*GPT2, "pytorch_model.bin"}),
    "Qwen/Qwen3-Embedding-0.6B": ([*SMALL, *EMBEDDER, "LICENSE", "model.safetensors", "tf_model.h5"], {"tf_model.h5"}),
    "Muennighoff/SGPT-125M-weightedmean-nli-bitfit": (
        [*SMALL, *EMBEDDER, *SGPT, "pytorch_model.bin", "evaluation/mteb/Banking77.json", "similarity_results.csv"],
        {"evaluation/mteb/Banking77.json", "similarity_results.csv"},
    ),
    "sharded": (
        [
            *SMALL, "chat_template.jinja", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
            "model.safetensors.index.json", "consolidated.safetensors", "original/consolidated.00.pth",
            "original/params.json", "tokenizer.model", "runs/events.out.tfevents.1",
            "optimizer.pt", "training_args.bin",
        ],
        {
            "consolidated.safetensors", "original/consolidated.00.pth", "original/params.json", "tokenizer.model",
            "runs/events.out.tfevents.1", "optimizer.pt", "training_args.bin",
        },
    ),
    "sharded, as pickles": (
        ["config.json", "pytorch_model-00001-of-00001.bin", "pytorch_model.bin.index.json", "model.fp16.safetensors"],
        {"model.fp16.safetensors"},
    ),
    "older sentence-transformers": (
        ["modules.json", "0_Transformer/config.json", "0_Transformer/pytorch_model.bin", "0_Transformer/rust_model.ot",
         "2_Dense/model.safetensors", "2_Dense/pytorch_model.bin", "2_Dense/config.json"],
        {"0_Transformer/rust_model.ot", "2_Dense/pytorch_model.bin"},
    ),
    "one GGUF": (["README.md", "model-q8_0.gguf"], set()),
}  # fmt: skip


@pytest.mark.parametrize("name", REPOSITORIES)
def test_one_readable_format_of_the_weights_is_fetched(name):
    files, left = REPOSITORIES[name]
    left = left - {"generation_config.json"}  # small, and part of the model
    assert model_files(files) == sorted(set(files) - left)


def test_repositories_without_readable_weights_are_refused():
    for files in (
        [],
        ["config.json", "tf_model.h5", "adapter_model.safetensors"],
        ["onnx/model.safetensors"],
    ):
        with pytest.raises(InputError, match=r"no model\.safetensors, pytorch_model\.bin or \.gguf file"):
            model_files(files)
    with pytest.raises(InputError, match=r"has 2 GGUF files \(a\.gguf, b\.gguf, …\); download the one"):
        model_files(["b.gguf", "README.md", "a.gguf"])


COMMIT = "a" * 40
FILES = {
    f: f.encode() * 9
    for f in [*SMALL, *EMBEDDER, "model.safetensors", "pytorch_model.bin", "onnx/model.onnx"]
}


class Hub(http.server.BaseHTTPRequestHandler):
    """A server with the parts of the hub's API that fetching a model needs."""

    asked: list[str] = []  # noqa: RUF012

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.wfile.write(self.answer())

    def answer(self):
        path = self.path.partition("?")[0]
        file = path.removeprefix(f"/tiny/model/resolve/{COMMIT}/")
        status, content = 200, b""
        if path == f"/api/models/tiny/model/tree/{COMMIT}":
            content = json.dumps(
                [{"type": "file", "path": f, "size": len(d), "oid": "0"} for f, d in FILES.items()]
            )
        elif path.startswith("/api/models/tiny/model"):
            content = json.dumps(
                {"id": "tiny/model", "sha": COMMIT, "siblings": [{"rfilename": f} for f in FILES]}
            )
        elif file in FILES:
            content = FILES[file]
            self.asked.append(file)
        else:
            status = 404
        content = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        return content

    def log_message(self, *args):
        pass


def test_the_command_fetches_the_readable_files_from_the_hub(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "hf"),
    }
    environment |= {"ZHIZHI_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment.pop("HF_HUB_OFFLINE", None)

    def fetch(name):
        command = [sys.executable, "scripts/fetch_model.py", name]
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)

    done = fetch("tiny/model")
    folder = tmp_path / "cache" / "models" / "tiny" / "model"
    assert (done.returncode, done.stdout) == (0, f"{folder}\n"), done.stderr
    there = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert there == {f: d for f, d in FILES.items() if f not in ("pytorch_model.bin", "onnx/model.onnx")}
    assert set(Hub.asked) == set(there)
    server.shutdown()
    server.server_close()
    done = fetch("tiny/other")  # the server is closed
    assert done.returncode == 1
    assert done.stderr.startswith(
        "fetch_model.py: tiny/other could not be downloaded from the Hugging Face hub: "
    )
    assert len(done.stderr.splitlines()) == 1
    assert [p.name for p in (tmp_path / "cache" / "models").iterdir()] == ["tiny"]
    assert [p.name for p in folder.parent.iterdir()] == ["model"]
