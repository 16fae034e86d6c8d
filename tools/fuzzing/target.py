"""What is fuzzed: one parser, the inputs to begin with, and what a refusal looks like."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar


class WrongError(Exception):
    """The parser took an input, and what it made of it contradicts itself."""


class Target(ABC):
    """One parser.

    Attributes:
        name: as on the command line.
        modules: the source that its coverage is counted in, as modules or packages.
        leaves_out: how the names of functions begin that are in these modules, but are no part of the parser.
        refusals: the errors by which it may refuse an input, each with one line for the user.
    """

    name: ClassVar[str]
    modules: ClassVar[tuple[str, ...]]
    leaves_out: ClassVar[tuple[str, ...]] = ()
    refusals: ClassVar[tuple[type[Exception], ...]] = ()

    @abstractmethod
    def seeds(self) -> list[bytes]:
        """Inputs that are right, or nearly so, of every kind that the format has."""

    @abstractmethod
    def words(self) -> list[bytes]:
        """What the format is made of."""

    @abstractmethod
    def feed(self, data: bytes) -> None:
        """Have the parser take one input.

        Raises:
            Exception: of `refusals`, when the input is refused; anything else is a finding.
        """

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Give back what the target holds."""
