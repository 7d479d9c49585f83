"""`python -m culturemanager`: the command line where the shell does not find it by its name."""

from culturemanager.cli import main

if __name__ == "__main__":
    main()
