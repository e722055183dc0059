"""The stages of labelling: pure functions of arrays and a frozen configuration."""
