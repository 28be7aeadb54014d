"""Read and write Hugging Face folders: config.json, weight names, tokenizer files."""
