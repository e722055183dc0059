"""What is measured on a benchmark and how: clicks, sweeps, whole images, video, sets of masks, with their controls."""
