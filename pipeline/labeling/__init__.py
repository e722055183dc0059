"""An RGB image to its annotations. `miner.py` reads top to bottom; `stages/` are its pure functions."""
