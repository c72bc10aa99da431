"""The formats of weights, one file each.

`matches(state)` tells whether the names are the format's; `convert(state, network)` renames them to our
network's and raises WeightsError for a key that is missing or unknown.
"""
