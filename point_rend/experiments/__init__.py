"""Experiments: costs, ablations, benchmarks."""
