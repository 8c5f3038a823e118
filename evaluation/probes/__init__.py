"""Questions with known answers for any encoder: one file per probe, over a shared pool of drawn scenes."""
