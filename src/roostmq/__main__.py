"""`python -m roostmq` is `roost`."""

from roostmq.interface.cli import main

main()
