"""Commands of the mill and the release, one module each, loaded when called."""
