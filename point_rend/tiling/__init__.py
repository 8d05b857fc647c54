"""Huge images in tiles: their grid, windowed reading, and the merging of results across borders."""
