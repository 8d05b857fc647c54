"""Safe loading and sealed saving of checkpoints."""
