"""From a committed run to a published dataset: collected, described, checked, pushed."""
