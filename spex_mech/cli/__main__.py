"""`python -m spex_mech.cli`: the command line."""

from spex_mech.cli.main import main

main()
