"""Data sets that the command line registers."""
