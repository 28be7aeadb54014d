"""Read documents from files, and split documents into passages."""
