"""Preparation of video data sets for training; ``python -m pipeline --help``."""

__version__ = "0.1.0"
