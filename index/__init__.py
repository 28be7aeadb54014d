"""Documents, passages, the store, FAISS and hybrid search."""
