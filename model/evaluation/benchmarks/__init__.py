"""Readers of benchmarks as downloaded, and of mined shards as one: images, and each one's annotated objects."""
