"""From a video file to a clip: probing, cutting, encoding, decoding."""
