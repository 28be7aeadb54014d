"""Ranks and how they share a model: DDP, FSDP2, DeepSpeed's ZeRO-3."""
