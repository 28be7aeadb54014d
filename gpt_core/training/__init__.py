"""The training loop: optimizers, checkpoints, parallelism, monitoring, pretraining."""
