"""Shards to training examples: which samples, their masks as run lengths, views, prompts, a stream of them."""
