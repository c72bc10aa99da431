"""The demonstration: a synthetic, motion-only data set, and the small web server it is fetched from."""
