"""Snapshots of the vectors, and exact and approximate search in them, or in a copy in Milvus."""
