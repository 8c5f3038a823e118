"""everyday-tiny: a student of everyday-small, and how it is made."""
