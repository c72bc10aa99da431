"""The Beam job behind ``prepare``: one call, its graph, the stages of a video, its progress."""
