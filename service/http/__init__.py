"""HTTP requests: their bodies read and validated, their answers and errors written, who may ask."""
