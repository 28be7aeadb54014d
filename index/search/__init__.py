"""Lexical search, filters, and the fusion of lexical and dense scores."""
