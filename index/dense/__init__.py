"""Snapshots of the vectors, and exact and approximate search in them."""
