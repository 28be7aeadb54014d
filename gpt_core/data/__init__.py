"""From documents to batches: sources, token shards, batches, tokenizer training."""
