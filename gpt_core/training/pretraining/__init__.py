"""Pretraining and its dry run."""
