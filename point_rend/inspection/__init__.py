"""Reports of data sets: sizes, classes, faults, and settings that fit them."""
