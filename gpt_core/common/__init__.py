"""Utilities of every command: errors, files, JSONL, presets, signals, the CLI wrapper."""
