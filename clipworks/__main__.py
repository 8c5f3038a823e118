"""`python -m clipworks`: the command line, where its script is not on the PATH."""

from clipworks.cli import app

app(prog_name="clipworks")
