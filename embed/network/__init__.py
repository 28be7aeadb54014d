"""The GPT with pooling as a network, and operations on its vectors: whitening, quantization."""
