"""Models on disk: Hugging Face, GGUF, nanoGPT and small-gpt, model cards, export."""
