"""The contract between training and serving: what an artifact is, and the only pixel and token code."""
