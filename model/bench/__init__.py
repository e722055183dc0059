"""Benches of the student, by `grainmill bench`."""
