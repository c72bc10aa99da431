"""The Beam job: prepares the pending rows of the lists and publishes them."""


class PrepareError(Exception):
    """A run cannot start or go on: one sentence with the remedy."""
