"""What is searched: FAISS indexes in memory, their slots, masks and snapshots."""
