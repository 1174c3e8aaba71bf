"""`python -m natterjack`: the same as the command `natterjack`."""

from natterjack.cli import main

if __name__ == "__main__":
    main()
