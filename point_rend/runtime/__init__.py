"""Exported models, run in place of the model that they were exported from."""
