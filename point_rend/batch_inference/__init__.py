"""Prediction on many images: manifests, shards that continue after a stop, and clusters."""
