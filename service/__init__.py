"""The server: HTTP in, vectors out. It never imports training and never needs torch."""
