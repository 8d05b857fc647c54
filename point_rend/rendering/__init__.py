"""Rendering: point predictor, uncertainty and subdivision plan make a mask."""
