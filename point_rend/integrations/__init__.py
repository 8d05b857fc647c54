"""Conversion between this package's results and the types of other libraries."""
