"""A finished model: language-model scores, inspection, plots, the report line."""
