"""Data sets: the built-in one and one's own in COCO format."""
