"""Commands that mine, look at and release data, one module each, loaded when called."""
