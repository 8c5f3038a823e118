"""FAISS indexes in memory: their slots, masks, ranking and snapshots."""
