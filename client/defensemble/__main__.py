"""`python -m defensemble` is the command line."""

from defensemble.cli import main

if __name__ == "__main__":
    main()
