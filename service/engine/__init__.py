"""Models that run: opened, proven, batched, supervised, replaced."""
