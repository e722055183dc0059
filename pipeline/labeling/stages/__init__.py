"""The five stages of the mill: pure functions of arrays and a frozen configuration."""
