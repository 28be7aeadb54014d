"""A prompt to text: the engine, sampling, prompt lookup, int8, conversations, chat."""
