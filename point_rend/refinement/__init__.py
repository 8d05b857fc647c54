"""Masks for the boxes of other detectors."""
