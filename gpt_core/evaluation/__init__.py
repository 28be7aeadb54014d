"""Evaluation of trained models: language-model scores, inspection, plots, reports."""
