"""Released shards in, checkpoints and scores out."""
