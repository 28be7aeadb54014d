"""Measure speed, next to a peer in one run."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from embed.bench_encode import bench_encode
from gpt_core.bench_attention import bench_attention
from gpt_core.bench_generate import bench_generate
from gpt_core.bench_learn import bench_learn
from gpt_core.bench_train import bench_train
from gpt_core.doors import open_door


def main() -> None:
    open_door(
        {
            "train": bench_train,
            "attention": bench_attention,
            "learn": bench_learn,
            "generate": bench_generate,
            "encode": bench_encode,
        }
    )


if __name__ == "__main__":
    main()
