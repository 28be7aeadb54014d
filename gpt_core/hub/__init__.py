"""Where a model is: known names, the cache, downloads."""
