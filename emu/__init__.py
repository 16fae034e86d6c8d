"""A concurrent userland laboratory for the flush queues of Linux's IOMMU layer.

From Python: `emu.run`, `emu.replay`, `emu.compare`, `emu.load`, see docs/api.md.
"""

import os

if os.environ.get("EMU_MUTANT"):
    from emu.mutants.catalogue import put_in

    put_in(os.environ["EMU_MUTANT"])

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emu.api import (
        Comparison,
        Config,
        ConfigError,
        ExportError,
        MachineError,
        QueryError,
        Result,
        RunDataError,
        compare,
        load,
        load_config,
        questions,
        replay,
        run,
        sql,
    )

__all__ = [
    "Comparison",
    "Config",
    "ConfigError",
    "ExportError",
    "MachineError",
    "QueryError",
    "Result",
    "RunDataError",
    "compare",
    "load",
    "load_config",
    "questions",
    "replay",
    "run",
    "sql",
]


def __getattr__(name: str) -> Any:
    # Only now: the command line, which shows help at once, imports this package too.
    if name in __all__:
        from emu import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
