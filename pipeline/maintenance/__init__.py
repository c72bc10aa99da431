"""Commands on a published data set: verify, remove, compact, and the comparison of lists with archives."""
