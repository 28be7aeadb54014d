"""Pretraining on the one loop, and its dry run."""
