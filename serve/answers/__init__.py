"""Grounded answers: prompt, attribution of sentences, and the evaluation of attribution."""
