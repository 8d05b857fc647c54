"""Measuring what a model predicts."""
