"""Text that others have written, on a terminal: shown, and not obeyed."""

from __future__ import annotations

from rich.markup import escape


def plain(text: str) -> str:
    """`one_line` for a console that reads markup: what looks like markup in the text is none."""
    return escape(one_line(text))


def one_line(text: str) -> str:
    r"""The same text with whatever a terminal would act upon as an escape: "a\nb", "\x1b[31m", "\u202e"."""
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
