"""Data loaders with an order that a resumed training repeats."""
