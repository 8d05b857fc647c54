"""The demos: their steps and their pictures."""
