"""Ground-truth masks, labels of points and losses for training."""
