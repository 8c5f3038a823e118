"""What is stored: the SQLite database of a data folder, its log, its witness, filters over it."""
