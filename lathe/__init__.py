"""Lathe's command line: its commands, and the code that connects the packages behind them."""
