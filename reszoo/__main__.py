"""`python -m reszoo` is the command line."""

from reszoo.cli import main

main()
