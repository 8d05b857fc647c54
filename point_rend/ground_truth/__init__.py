"""Labels, masks and losses for training."""
