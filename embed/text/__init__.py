"""Text analysis: index terms and sentence boundaries."""
