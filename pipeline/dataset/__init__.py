"""The published data set: `open` it, read a `Sample`. Imports no Beam, numba or torch."""

from pipeline.dataset.reader import Dataset, NoDatasetError, Sample, decode_flow, latest, open
from pipeline.dataset.schema import (
    FLOW_BOUND,
    FLOW_SCALE,
    FLOW_ZERO,
    INDEX_SCHEMA,
    OUTCOME_SCHEMA,
    REMOVED_MEMBER,
    SPLITS,
    DatasetError,
    ShardInfo,
)
from pipeline.keys import id_of

__all__ = [
    "FLOW_BOUND",
    "FLOW_SCALE",
    "FLOW_ZERO",
    "INDEX_SCHEMA",
    "OUTCOME_SCHEMA",
    "REMOVED_MEMBER",
    "SPLITS",
    "Dataset",
    "DatasetError",
    "NoDatasetError",
    "Sample",
    "ShardInfo",
    "decode_flow",
    "id_of",
    "latest",
    "open",
]
