"""Monitoring of training runs: log, loss plot, diagnostics, FLOPs."""
