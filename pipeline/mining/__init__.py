"""The job of `grainmill mine`, top to bottom in `job.py`: sources, plan, units, commits, manifest."""
