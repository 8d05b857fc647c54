"""Masks for the boxes of other detectors and annotators, as `pointrend refine` makes them."""
