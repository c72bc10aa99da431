"""Commands on a published data set: verify, remove, compact."""
