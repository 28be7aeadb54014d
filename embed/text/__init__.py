"""Text analysis: terms and sentences."""
