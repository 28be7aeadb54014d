"""Retrieval scores, lexical, dense and hybrid side by side, and tuning on development sets."""
