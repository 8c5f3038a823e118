"""Robustness of what an encoder names: pictures that are corrupted, and pictures that were changed to deceive it."""
