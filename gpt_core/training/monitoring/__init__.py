"""What a run records: log, loss plot, diagnostics, FLOPs."""
