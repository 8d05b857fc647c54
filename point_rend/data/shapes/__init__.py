"""The built-in data: drawn shapes in COCO format, drawn streets in the Cityscapes layout."""
