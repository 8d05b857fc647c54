"""Trackers of experiments, Weights & Biases and MLflow, fed by the writers of a training."""
