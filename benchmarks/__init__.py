"""The benchmarks of `scripts/bench.py`: speed and learning, compared with peers."""
