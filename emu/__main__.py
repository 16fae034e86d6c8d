"""`python -m emu`."""

import sys
from typing import NoReturn

from emu.cli.failure import INTERRUPTED
from emu.process import own_process


def main() -> NoReturn:
    """The entry point of `emu`."""
    own_process()
    try:
        from emu.cli.app import main as run_command  # noqa: PLC0415 - heavy, and now it is imported faster
    except KeyboardInterrupt:
        sys.stderr.write("emu: interrupted\n")
        sys.exit(INTERRUPTED)
    run_command()


if __name__ == "__main__":
    main()
