"""Measure the speed of this package and of a peer library in the same run."""

import zhizhi._quiet  # first: Ctrl-C during the imports below

from benchmarks.attention import bench_attention
from benchmarks.encode import bench_encode
from benchmarks.generate import bench_generate
from benchmarks.learn import bench_learn
from benchmarks.learn_embedding import bench_learn_embedding
from benchmarks.learn_reader import bench_learn_reader
from benchmarks.learn_sentiment import bench_learn_sentiment
from benchmarks.lexical import bench_lexical
from benchmarks.search import bench_search
from benchmarks.train import bench_train
from gpt_core.common.cli import run_command


def main() -> None:
    run_command(
        {
            "train": bench_train,
            "attention": bench_attention,
            "learn": bench_learn,
            "learn-embedding": bench_learn_embedding,
            "learn-sentiment": bench_learn_sentiment,
            "learn-reader": bench_learn_reader,
            "generate": bench_generate,
            "encode": bench_encode,
            "lexical": bench_lexical,
            "search": bench_search,
        }
    )


if __name__ == "__main__":
    main()
