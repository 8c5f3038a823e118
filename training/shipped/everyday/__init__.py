"""The recipe of the shipped model, everyday-small: what it is trained on, and the one command that makes it again."""
