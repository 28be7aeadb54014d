"""The generation thread, the search thread, and the service that owns them."""
