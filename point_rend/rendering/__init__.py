"""Rendering of masks from a point predictor, an uncertainty and a subdivision plan."""
