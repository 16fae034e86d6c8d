"""`python -m emu`."""

from typing import NoReturn

from emu.process import own_process


def main() -> NoReturn:
    """The entry point of `emu`."""
    own_process()
    from emu.cli.app import main as run_command  # noqa: PLC0415 - heavy, and now it is imported faster

    run_command()


if __name__ == "__main__":
    main()
