"""Documents to batches: sources, token shards, the loader, tokenizer training."""
