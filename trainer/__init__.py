"""Training, evaluation and use of video networks on a published data set; ``python -m trainer --help``."""
