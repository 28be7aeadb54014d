"""Distributed training: ranks, DDP, FSDP2, DeepSpeed's ZeRO-3."""
