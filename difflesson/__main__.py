"""`python -m difflesson`: the command line."""

from difflesson.cli import main

if __name__ == "__main__":
    main()
