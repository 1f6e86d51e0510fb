"""python -m showo: the `showo` command."""

from showo.cli import main

main()
