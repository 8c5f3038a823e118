"""Backends that keep collections: the embedded store, or a Milvus that is reached over its address.

protocol.py is what the rest of the server may use of either. The embedded store fits it as it is.
"""
