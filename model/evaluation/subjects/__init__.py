"""What is measured: anything that answers clicks, and masks that need no training."""
