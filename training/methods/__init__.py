"""Training methods, one file each: a file here is a method, found by its name."""
