"""Time, peak memory and agreement of these heads and of Detectron2's own, side by side."""
