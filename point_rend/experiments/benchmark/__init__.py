"""Benchmarks against the stock project."""
