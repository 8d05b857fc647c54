"""Backbones beyond Detectron2's ResNets, by the names that a config gives."""
