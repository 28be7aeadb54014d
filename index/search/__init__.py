"""Lexical matches, filters, and the fusion of lexical and dense scores."""
