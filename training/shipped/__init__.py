"""Scripts that made or repaired the embedded default model; each was run once."""
