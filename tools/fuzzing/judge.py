"""What became of one input: taken, refused in one line, or a finding."""

from __future__ import annotations

import traceback

from fuzzing.target import Target


def finding_of(target: Target, data: bytes) -> str | None:
    """Feed an input to a parser.

    Returns:
        None when it was taken or properly refused, else what went wrong, a traceback.
    """
    try:
        target.feed(data)
    except target.refusals as error:
        message = str(error)
        if message and len(message.splitlines()) == 1:
            return None
        return f"it was refused by {type(error).__name__}, but not in one line: {message!r}"
    except Exception:  # noqa: BLE001 - whatever it is, it is what is being looked for
        return traceback.format_exc()
    return None
