"""Choices of the command line. Imports nothing, so that --help answers at once."""

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
"""In which a network computes."""

FORMATS = {
    "deepmind": "deepmind",
    "piergiaj": "piergiaj",
    "hassony2": "hassony2",
    "torchvision": "torchvision",
    "vmz": "torchvision",
    "tsm": "tsm",
    "pyslowfast": "pyslowfast",
    "pytorchvideo": "pytorchvideo",
    "hara": "hara",
    "bninception": "bninception",
}
"""Formats of published weights, and the module of `trainer.weights` that reads each."""
