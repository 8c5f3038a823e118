"""A group taken out of a model's vectors in closed form: fitted without training, published as adapters of a base."""
