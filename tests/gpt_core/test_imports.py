"""What importing the packages loads, and on which systems it works."""

import subprocess
import sys

LAZY = """
import sys
import gpt_core.common.errors
assert "torch" not in sys.modules, "importing an exception class loads torch"
import gpt_core, zhizhi
assert "torch" not in sys.modules, "importing gpt_core loads torch before a name of it is used"
assert zhizhi.Tokenizer is gpt_core.Tokenizer
"""

# The standard library, torch and the other dependencies have Windows versions; they are imported before the names go.
WITHOUT_POSIX = """
import os, sys
import concurrent.futures, faiss, fastapi, filelock, gguf, multiprocessing, random, tokenizers, torch, uvicorn
del os.register_at_fork, os.sched_getaffinity
for name in ("fcntl", "pwd", "resource", "termios"):
    sys.modules[name] = None
from gpt_core import GPT, GPTConfig, Tokenizer, generate
from embed import Encoder
from index import Index
from serve import create_app
import gpt_core.training.pretraining.pretrain
print(generate(GPT(GPTConfig.gpt2(vocab_size=50257, block_size=16, n_layer=1, n_head=1, n_embd=8)).eval(),
    Tokenizer.from_pretrained("gpt2"), "a", max_new_tokens=1))
"""


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_names_are_imported_when_they_are_used() -> None:
    run(LAZY)


def test_the_packages_import_without_the_modules_that_only_posix_systems_have() -> None:
    run(WITHOUT_POSIX)
