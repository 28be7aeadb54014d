"""Threads and queues: generation, search, the service that owns them."""
