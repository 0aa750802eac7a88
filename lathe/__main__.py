"""`python -m lathe`."""

from lathe.cli import main

if __name__ == "__main__":
    main()
