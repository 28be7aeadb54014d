"""The GPT as a network: config, layers, attention, rope, masks, cache."""
