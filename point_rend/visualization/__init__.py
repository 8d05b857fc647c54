"""Drawing of masks, points and figures."""
