"""Training that survives being killed and repeats itself bit by bit."""
