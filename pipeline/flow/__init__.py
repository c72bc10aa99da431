"""TV-L1 optical flow on one core, and flow stored as video. Imports no OpenCV."""

from pipeline.flow.pairs import device_class, tvl1, tvl1_clip, tvl1_pairs
from pipeline.flow.recipe import TVL1, FlowCoding

__all__ = ["TVL1", "FlowCoding", "device_class", "tvl1", "tvl1_clip", "tvl1_pairs"]
