"""Checkpoints and tokenizers of other projects, read into ours."""
