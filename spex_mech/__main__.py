"""`python -m spex_mech`: the command line."""

from spex_mech.cli.main import main

main()
