"""One module for each subcommand of `showo`. They import nothing heavy until they run."""
