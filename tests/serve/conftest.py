"""Fixtures: a corpus, an embedder with random weights, a generator that writes a given text, and real servers."""

import contextlib
import socket
import threading
import time
from itertools import pairwise

import httpx
import openai
import pytest
import torch
import uvicorn
from torch import nn

from embed import Encoder
from gpt_core import GPT, GPTConfig, Tokenizer
from gpt_core.formats.card import Card
from gpt_core.generation.engine import Engine
from gpt_core.tasks.folder import save_task
from gpt_core.tasks.network import TaskNetwork
from gpt_core.tasks.settings import TaskSettings
from index import Document, Index
from serve import create_app
from serve.run_server import Server

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
DOCUMENTS = [
    Document(
        "gil",
        "Threads in CPython take turns. The interpreter lock became optional in October 2024. Other locks stay.",
        "The interpreter lock",
    ),
    Document("cats", "A cat sleeps for most of the day. It hunts mice at dusk 🐈 and in the dark.", "Cats"),
    Document("beijing", "北京是中国的首都。它有两千多万人口，长城在它的北边。", "北京"),
    Document(
        "evil",
        "<img src=x onerror=alert(1)> Scripts like <script>alert(2)</script> stay text.",
        "<b>Markup</b>",
    ),
]
SAYS = " It became optional in October 2024."
HELLO = [{"role": "user", "content": "hello"}]
QUESTION = "When did the interpreter lock become optional?"


@pytest.fixture(scope="session")
def tokenizer():
    tokenizer = Tokenizer.from_pretrained("gpt2")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def speaker(tokenizer, text, for_ever=False, block_size=4096):
    """A GPT that continues "assistant:" with `text` and then stops, or repeats `text` if `for_ever`.

    Attention and MLP output zeros, so that a token's state is its embedding; the head maps it to the next token of
    `text`. No token may occur twice in `text`.
    """
    chain = tokenizer.encode("assistant:")[-1:] + tokenizer.encode(text)
    assert len(set(chain)) == len(chain), "a token occurs twice"
    chain.append(chain[1] if for_ever else tokenizer.eos_id)
    size = {"n_layer": 1, "n_head": 1, "n_kv_head": 1, "head_dim": 8, "n_inner": 8, "n_embd": len(chain)}
    model = GPT(
        GPTConfig(
            vocab_size=50257, block_size=block_size, tie_embeddings=False, eos_id=tokenizer.eos_id, **size
        )
    )
    nn.init.zeros_(model.blocks[0].attn.o.weight)
    nn.init.zeros_(model.blocks[0].mlp.down.weight)
    with torch.no_grad():
        model.wte.weight.zero_()
        model.head.weight.zero_()
        for place, (token, following) in enumerate(pairwise(chain)):
            model.wte.weight[token, place] = 1
            model.head.weight[following, place] = 1
    return model


@pytest.fixture(scope="session")
def reader(tokenizer, tmp_path_factory):
    """The folder of a reader whose answers begin with " October" and end with "24".

    Attention and MLP output zeros, as in `speaker`; the head gives a high logit to these two tokens.
    """
    first, last = tokenizer.encode(" October")[0], tokenizer.encode(" October 2024")[-1]
    gpt = GPT(
        GPTConfig(vocab_size=50257, block_size=512, n_layer=1, n_head=1, head_dim=8, n_inner=8, n_embd=2)
    )
    for layer in (gpt.wte, gpt.blocks[0].attn.o, gpt.blocks[0].mlp.down):
        nn.init.zeros_(layer.weight)
    network = TaskNetwork(gpt, "span", 0, answer_tokens=8)
    with torch.no_grad():
        gpt.wte.weight[first, 0] = gpt.wte.weight[last, 1] = 1
        for parameter in network.head.parameters():
            parameter.zero_()
        network.head.ends.weight.copy_(torch.eye(2) * 8)
        network.head.none.bias.fill_(14)  # above a start without its end, which has the logit 8 · √2
    folder = tmp_path_factory.mktemp("reader")
    settings = TaskSettings("span", max_tokens=128, answer_tokens=8)
    save_task(folder, network, settings, tokenizer, network.state_dict(), Card())
    return folder


def random_gpt(seed=0):
    torch.manual_seed(seed)
    return GPT(GPTConfig.gpt2(vocab_size=50257, block_size=1024, n_layer=2, n_head=2, n_embd=32))


@pytest.fixture(scope="session")
def encoder(tokenizer):
    return Encoder(random_gpt(), tokenizer, name="tiny-embedder")


@pytest.fixture
def index(tmp_path, encoder):
    with Index.create(tmp_path / "index", encoder) as index:
        index.add(DOCUMENTS)
        yield index


_servers: dict[str, Server] = {}


def stop(url):
    """Tell the server at `url` to stop, as SIGTERM does."""
    _servers[url].should_exit = True


@contextlib.contextmanager
def serving(app, **options):
    """The base URL of `app` on a real server; options of uvicorn's config."""
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = _servers[url] = Server(uvicorn.Config(app, log_level="error", **options))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield url
    finally:
        stop(url)
        thread.join()
        listener.close()


@pytest.fixture
def serve(index, tokenizer):
    """serve(text or model, …) → (base URL, app): a server whose generator writes `text`."""
    with contextlib.ExitStack() as stack:

        def start(generator, max_running=4, max_requests=64, access=None, reader=None, **engine):
            model = speaker(tokenizer, generator) if isinstance(generator, str) else generator
            engine = Engine(model, tokenizer, max_running=max_running, **engine)
            options = {"generator_name": "tiny-gpt", "max_requests": max_requests, "reader": reader}
            app = create_app(index, engine, **options | (access or {}))
            return stack.enter_context(serving(app)), app

        yield start


@pytest.fixture(scope="session")
def shared_url(tmp_path_factory, encoder, tokenizer):
    """The base URL of a server that stays up, for tests that leave nothing behind; its generator writes `SAYS`."""
    with Index.create(tmp_path_factory.mktemp("shared") / "index", encoder) as index:
        index.add(DOCUMENTS)
        app = create_app(index, Engine(speaker(tokenizer, SAYS), tokenizer), generator_name="tiny-gpt")
        with serving(app) as url:
            yield url


@pytest.fixture
def client():
    with httpx.Client(timeout=30) as client:
        yield client


def wait_until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.01)


def sse(response):
    """The events of a response as (event, data) strings."""
    for block in response.read().decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        yield fields.get("event"), fields["data"]


@pytest.fixture
def api(serve):
    """OpenAI's client of a server whose generator writes `SAYS` after "assistant:"."""
    url, _ = serve(SAYS)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as api:
        yield api


@pytest.fixture
def model():
    """A generator with random weights; its text may contain incomplete characters."""
    return random_gpt()


@pytest.fixture
def random_api(serve, model):
    """OpenAI's client of a server with the generator `model`."""
    url, _ = serve(model, max_requests=12)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as api:
        yield api


def chat(api, **options):
    return api.chat.completions.create(**({"model": "tiny-gpt", "messages": HELLO} | options))


def complete(api, prompt="assistant:", **options):
    return api.completions.create(model="tiny-gpt", prompt=prompt, **options)
