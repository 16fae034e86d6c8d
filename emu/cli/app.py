"""The command line: finds the command, and turns whatever goes wrong into one line and an exit code.

Commands import what is heavy (numba, NumPy) when they run, so help and errors come at once.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from cyclopts import App, CycloptsError, Parameter

from emu.analysis.environment import emu_version
from emu.cli.bench import bench
from emu.cli.claims import claims
from emu.cli.compare import compare
from emu.cli.doctor import doctor
from emu.cli.explore import explore
from emu.cli.export import export
from emu.cli.failure import BUG, FINE, INTERRUPTED, WRONG_CALL, Failure
from emu.cli.logs import logs
from emu.cli.replay import replay
from emu.cli.report import report
from emu.cli.run import run
from emu.cli.scaling import scaling
from emu.cli.set import set_
from emu.cli.stress import stress
from emu.cli.sweep import sweep
from emu.cli.top import top
from emu.report.plain import one_line

app = App(
    name="emu",
    help="A concurrent userland laboratory for IOMMU flush queues: real processes, shared memory, measured contention.",
    help_epilogue="Example: emu run --preset kvm --cpus 4 --domain DMA-FQ --domain DMA-SQ",
    version=emu_version,
    verbose=False,
    print_error=False,
    exit_on_error=False,
    result_action="return_value",
    default_parameter=Parameter(show_default=False),
    group_parameters="Options",
)
app.command(
    run, usage="Usage: emu run [MACHINE.toml] [OPTIONS]", help_epilogue="Example: emu run --preset lpar --cpus 2"
)
app.command(
    replay,
    usage="Usage: emu replay CAPTURE [OPTIONS]",
    help_epilogue="Example: emu replay s390x-lazy-nvme --domain DMA-SQ",
)
app.command(
    set_,
    name="set",
    usage="Usage: emu set KEY VALUE [OPTIONS]",
    help_epilogue="Example: emu set type DMA-FQ",
)
app.command(stress, usage="Usage: emu stress [OPTIONS]", help_epilogue="Example: emu stress --minutes 10 --seed 1")
app.command(
    explore, usage="Usage: emu explore [OPTIONS]", help_epilogue="Example: emu explore --domain DMA-SQ --with-timer 1"
)
app.command(
    logs,
    usage="Usage: emu logs RUN [RUN…] [OPTIONS]",
    help_epilogue="Example: emu run --engine sim --out first && emu logs first --ask flush-causes",
)
app.command(
    report,
    usage="Usage: emu report RUN… [OPTIONS]",
    help_epilogue="Example: emu run --preset lpar --seconds 0.5 --out lpar && emu report lpar",
)
app.command(
    export,
    usage="Usage: emu export RUN --format FORMAT [OPTIONS]",
    help_epilogue="Example: emu run --domain DMA-FQ --record --out my-run && emu export my-run --format perfetto",
)
app.command(
    top, usage="Usage: emu top [RUN-FOLDER|PID] [OPTIONS]", help_epilogue="Example: emu top --once --interval 1"
)
app.command(claims, usage="Usage: emu claims [OPTIONS]", help_epilogue="Example: emu claims --only C2 --only C4")
app.command(scaling, usage="Usage: emu scaling [OPTIONS]", help_epilogue="Example: emu scaling --preset lpar --most 64")
app.command(
    compare,
    usage="Usage: emu compare [MACHINE.toml…] [OPTIONS]",
    help_epilogue="Example: emu compare --engine sim --domain DMA --domain DMA-FQ --ops 4000",
)
app.command(
    bench, usage="Usage: emu bench [OPTIONS]", help_epilogue="Example: emu bench -t 2 -s 1 --domain DMA-SQ --engine sim"
)
app.command(
    sweep,
    usage="Usage: emu sweep EXPERIMENT.toml|FOLDER [OPTIONS]",
    help_epilogue="Example: emu sweep tools/examples/queue_size.toml && emu sweep --recommend emu-sweeps/queue_size",
)
app.command(doctor, usage="Usage: emu doctor [OPTIONS]", help_epilogue="Example: emu doctor --json")


def dispatch(arguments: Sequence[str]) -> int:
    """Run one command.

    Returns:
        The exit code, see `emu.cli.failure`.
    """
    try:
        return app(list(arguments)) or FINE
    except CycloptsError as error:
        return _complain(arguments, _usage_error(error, arguments), WRONG_CALL)
    except Failure as failure:
        return _complain(arguments, str(failure), failure.code)
    except KeyboardInterrupt:
        return _complain(arguments, "interrupted", INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has gone, as `head` does. Nothing may be flushed into the pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FINE


def main() -> NoReturn:
    """Run the command of this process's arguments, and end."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        code = dispatch(sys.argv[1:])
    except Exception:  # noqa: BLE001 - whatever it is, it must not look like a violation
        traceback.print_exc()
        code = BUG
    sys.exit(code)


def _name(arguments: Sequence[str]) -> str:
    return f"emu {arguments[0]}" if arguments and arguments[0] in app else "emu"


def _usage_error(error: CycloptsError, arguments: Sequence[str]) -> str:
    said = str(error).replace(", ...", " and more").rstrip(".")
    return f"{said}; see {_name(arguments)} --help"


def _complain(arguments: Sequence[str], message: str, code: int) -> int:
    print(f"{_name(arguments)}: {one_line(' '.join(message.split()))}", file=sys.stderr)
    return code
