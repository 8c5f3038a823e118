"""What lies between a request and the store of its collection: models, vectors, threads, upkeep."""
