"""Faster equivalents of Detectron2's modules, for inference on a CPU."""
