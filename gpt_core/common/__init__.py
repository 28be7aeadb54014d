"""What any command-line program needs: errors, files, JSONL, presets, signals, the CLI wrapper."""
