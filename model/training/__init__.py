"""From examples to a checkpoint: configuration, steps, losses, validation, several processes."""
