"""Evaluation of answers: data, quality of quotes and of their probabilities, attribution, and the fit of the ranker."""
