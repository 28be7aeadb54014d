"""Contrastive training, distillation and hard-negative mining."""
