"""FAISS snapshots and exact search over the stored vectors."""
