"""`python -m archgrad` is the command `archgrad`."""

from archgrad.cli import main

if __name__ == "__main__":
    main()
