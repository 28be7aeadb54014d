"""Build an index of files, and bring it up to date with them."""
