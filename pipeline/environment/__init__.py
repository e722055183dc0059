"""What a process runs on: numeric settings, torch, weights of timm's networks, stage seconds, faults for tests."""
