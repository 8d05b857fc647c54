"""A dry run: the first steps of a training, shown and measured, without its files."""
