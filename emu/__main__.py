"""`python -m emu`."""

from emu.cli.app import main

if __name__ == "__main__":
    main()
