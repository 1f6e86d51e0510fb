"""torchrun ... -m showo.train: `showo train` as one of several processes; alone it is the same command."""

import sys

from showo.cli import main

main(["train", *sys.argv[1:]])
