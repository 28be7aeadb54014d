"""Text generation: the engine, sampling, prompt lookup, int8, conversations, chat."""
