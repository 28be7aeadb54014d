"""Tokenizers, chat templates and their sandbox, streaming detokenization."""
