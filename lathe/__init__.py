"""Lathe's command line: the commands, and the wiring between the packages that do the work."""

__version__ = "0.1.0"
