"""Text that others wrote (names, paths, warnings), made harmless for a page and for the pictures in it."""

from __future__ import annotations

import re
from html import escape

_NUMBER_AND_UNIT = re.compile(r"(?<=\d) (?=(?:%|×|[µmn]?s|[kMGT])(?!\w))")


def plain(text: object) -> str:
    """One line of visible characters: what is not printable, as its escape sequence."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in str(text))


def markup(text: object) -> str:
    """The same as text of HTML, also within an attribute's quotes.

    Plotly takes its texts for HTML too, so this is what it is given.
    """
    return escape(plain(text), quote=True)


def shortened(text: object, most: int) -> str:
    """At most so many characters of it, not yet markup."""
    whole = plain(text)
    return whole if len(whole) <= most else f"{whole[: most - 1]}…"


def kept_together(text: str) -> str:
    """Markup whose lines do not break between a number and its unit."""
    return _NUMBER_AND_UNIT.sub("\u00a0", text)
