"""`grainmill boundaries`: a boundary net from the merge trees of images that are already mined."""
