"""`emu scaling`: throughput by number of CPUs, and the Universal Scalability Law fitted to it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any, get_args

from cyclopts import Parameter

from emu.cli.failure import DEATH, FINE, INTERRUPTED, Failure
from emu.cli.options import JsonOption, QuietOption, parse_setting, whole_number
from emu.config import DEFAULT_DOMAINS, DEFAULT_PRESET, MAX_CPUS, ConfigError, DomainType

if TYPE_CHECKING:
    from collections.abc import Sequence

    from emu.analysis.usl import Scalability
    from emu.scaling import Plan, Point

_MOST = 1024
_FEWEST = 8
"""A fit needs four numbers of CPUs."""


def scaling(
    *,
    preset: Annotated[str, Parameter(help="Hypervisor, as for emu run; default kvm.")] = DEFAULT_PRESET,
    domain: Annotated[
        list[str] | None,
        Parameter(negative=(), help="Domain type to run, as for emu run; repeatable; default all but s390-strict."),
    ] = None,
    most: Annotated[
        int, Parameter(converter=whole_number, help="CPUs of the largest machine, 8 to 4096; default 1024.")
    ] = _MOST,
    processes: Annotated[
        bool,
        Parameter(negative=(), help="Also run real processes, as far as there are cores, and show how far off sim is."),
    ] = False,
    set_: Annotated[
        list[str] | None,
        Parameter(
            name="--set",
            negative=(),
            metavar="SECTION.KEY=VALUE",
            help="Set any value of the description, as in --set workload.granule=4; repeatable.",
        ),
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> int:
    """Measure throughput with 1, 2, 4 … CPUs on virtual clocks, and fit the Universal Scalability Law to it.

    The load is that of the kernel's dma_map_benchmark, one page at a time.
    """
    if not _FEWEST <= most <= MAX_CPUS:
        raise Failure(f"--most: must be {_FEWEST} to {MAX_CPUS}, not {most}")
    wrong = next((name for name in domain or () if name not in get_args(DomainType)), None)
    if wrong is not None:
        raise Failure(f"--domain: must be {', '.join(get_args(DomainType))}, not {wrong!r}")
    try:
        import scipy  # noqa: F401 - said now, not after a minute
    except ModuleNotFoundError:
        raise Failure("needs scipy, which is not installed; pip install 'emu[claims]'") from None
    from emu.scaling import Plan

    sizes = [1 << power for power in range(most.bit_length())]
    domains: Any = tuple(dict.fromkeys(domain or DEFAULT_DOMAINS))
    plan = Plan(preset, domains, sizes, processes, [parse_setting(text) for text in set_ or ()])
    points, is_interrupted = _measured(plan, quiet=quiet)
    _print(plan, points, as_object=json)
    if is_interrupted:
        print("emu scaling: interrupted; what was measured is shown", file=sys.stderr)
        return INTERRUPTED
    return FINE


def _measured(plan: Plan, *, quiet: bool) -> tuple[list[Point], bool]:
    """The points, and whether the user stopped it."""
    from emu.experiment import DeathError, MachineError
    from emu.report.progress import ProgressBars
    from emu.scaling import measured

    points: list[Point] = []
    with ProgressBars(quiet=quiet) as bars:
        try:
            # What was measured before something goes wrong is kept.
            points.extend(measured(plan, bars.compiled, lambda part: bars.ran("scaling", part)))
        except KeyboardInterrupt:
            return points, True
        except (ConfigError, MachineError) as error:
            raise Failure(str(error)) from None
        except DeathError as error:
            raise Failure(str(error), DEATH) from None
    return points, False


def _print(plan: Plan, points: Sequence[Point], *, as_object: bool) -> None:
    virtual, real = _by_domain(points, "sim"), _by_domain(points, "processes")
    fits = _fits(virtual)
    if as_object:
        from emu.analysis.environment import emu_version, environment
        from emu.analysis.summary import SCHEMA, as_json

        whole = {
            "schema": SCHEMA,
            "command": "scaling",
            "preset": plan.preset,
            "environment": environment() if real else {"emu": emu_version()},
            "points": [point.as_dict() for point in points],
            "fits": {name: fit.as_dict() for name, fit in fits.items()},
        }
        sys.stdout.write(as_json(whole))
        sys.stdout.flush()
        return
    from rich.console import Console

    from emu.report.scaling import print_scaling

    print_scaling(Console(highlight=False), virtual, real, fits)


def _by_domain(points: Sequence[Point], engine: str) -> dict[str, dict[int, float]]:
    rates: dict[str, dict[int, float]] = {}
    for point in points:
        if point.engine == engine:
            rates.setdefault(point.domain, {})[point.cpus] = point.pairs_per_s
    return rates


def _fits(virtual: dict[str, dict[int, float]]) -> dict[str, Scalability]:
    from emu.analysis.usl import fit_scalability

    # Where the user stopped early, there may be too few points.
    whole = {domain: rates for domain, rates in virtual.items() if len(rates) >= _FEWEST.bit_length()}
    return {domain: fit_scalability(list(rates), list(rates.values())) for domain, rates in whole.items()}
