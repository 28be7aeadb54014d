"""Text to ids and back: BPE, chat templates and their sandbox, the detokenizer."""
