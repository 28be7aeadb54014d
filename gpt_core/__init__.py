"""The GPT: tokenizer, token shards, the model, training, checkpoints, generation."""
