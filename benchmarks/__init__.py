"""Speed and learning beside peers: what `scripts/bench.py` runs."""
