"""What a process runs on: numeric settings, torch, weights of timm's networks, and faults for tests."""
