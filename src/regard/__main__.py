"""`python -m regard`: the command line, where a launcher such as torchrun wants a module."""

from regard.cli import main

main()
