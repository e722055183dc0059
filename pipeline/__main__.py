"""`python -m pipeline` is `grainmill`."""

from .cli import console_script

console_script()
