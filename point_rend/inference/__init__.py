"""Prediction: inputs, model, outputs."""
