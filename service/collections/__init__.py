"""Collections of a server, between its routes and the store: models, vectors, threads, upkeep."""
