"""Models and checkpoints on disk: known names, the local cache, downloads, run folders."""
