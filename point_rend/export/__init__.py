"""Models as files that run without this package: graphs over tensors, and their writers."""
