"""Evaluation of an embedder: STS, and leakage of evaluation texts into training data."""
