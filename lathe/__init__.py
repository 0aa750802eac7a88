"""Lathe's command line: the commands, and the wiring between the packages that do the work."""
