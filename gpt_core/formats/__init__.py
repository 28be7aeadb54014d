"""File formats of models: Hugging Face, GGUF, nanoGPT and small-gpt; model cards, export."""
