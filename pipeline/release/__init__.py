"""From committed shards to a published dataset."""
