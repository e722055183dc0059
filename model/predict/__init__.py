"""A checkpoint, or no weights at all, in use: one image, everything in it, a video, the files of `segment`."""
