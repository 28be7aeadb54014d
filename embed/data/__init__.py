"""Data for training and evaluation: BEIR, pairs, text files, near-duplicates, BM25."""
