"""HTTP code shared by all routes: error envelope, body limit, event streams."""
