"""What every route shares: error envelope, body limit, event streams."""
