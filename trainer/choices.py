"""What the command line offers and heavy modules obey. It imports nothing, so that --help answers at once."""

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
"""Whose weights are read, and the module of `trainer.weights` that reads them."""
