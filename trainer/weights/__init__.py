"""Readers of others' checkpoints and inflation of 2D weights, one file a format."""
