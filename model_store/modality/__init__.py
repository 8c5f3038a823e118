"""Bytes and strings to the arrays that encoders take; used alike by training, export, evaluation and serving."""
