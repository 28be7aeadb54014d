"""The API routes: search, answers, OpenAI's embeddings, completions and chat."""
