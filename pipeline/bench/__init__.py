"""`grainmill bench NAME`: each claim of speed measured beside what it is claimed against."""
