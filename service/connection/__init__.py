"""Sockets and HTTP/1.1: what a client sends is framed, bounded and shed here, before there is a request."""
