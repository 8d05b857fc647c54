"""Checks of images and annotations before a run."""
