"""The SQLite database of a data folder: its log, its witness, its rows and filters over them."""
