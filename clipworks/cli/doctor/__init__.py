"""`clipworks doctor`: what an installation, its machine and its settings are like, and what to do about it.

A check is a function that looks at a Subject and returns a Diagnosis; `checks` has the table of them.
"""
