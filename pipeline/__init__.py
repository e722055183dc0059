"""Images in, released mask shards out."""

__version__ = "0.1.0"
