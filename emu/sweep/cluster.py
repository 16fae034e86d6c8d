"""Cells on the workers of a dask.distributed scheduler, one at a time on each.

dask gives the cells of a worker that is lost to others. A worker does not run them itself but in a process of its own
(`cell_process`): machines need a main thread and signals. Workers on one host take turns with cells that measure.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import distributed
from distributed.scheduler import KilledWorker

from emu.sweep.cell_process import Attempts, CellProcess, CellProcessDiedError, CellResult, given_up
from emu.sweep.cells import Cell
from emu.sweep.executor import OnBegin, SweepError
from emu.sweep.versions import differing, versions

RESOURCE = "measuring"
"""What a worker must offer 1 of: `dask worker ADDRESS --nthreads 1 --resources measuring=1`."""

_CONNECT_S = 10.0
_LOOK_S = 1.0
_FETCH_S = 5.0
_ALONE_S = 60.0
_AHEAD = 2
"""Cells that each worker has, with the one it runs: the next is there when one ends."""


class ClusterExecutor:
    """Workers of a scheduler.

    Args:
        address: of the scheduler, as tcp://host:8786.

    Raises:
        SweepError: there is no scheduler, no worker of use, or one with another emu.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        # What goes wrong there is said in a line of ours, and a lost worker is nothing that went wrong.
        for name in ("distributed", *logging.root.manager.loggerDict):
            if name.split(".")[0] == "distributed":
                # Each has a level of its own.
                logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            self._client = distributed.Client(address, timeout=_CONNECT_S, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
            raise SweepError(
                f"--cluster {address}: no scheduler answers: {reason}; start one with dask scheduler"
            ) from None
        try:
            self._check_workers()
        except BaseException:
            self.close()
            raise

    def run(self, cells: Sequence[Cell], on_begin: OnBegin) -> Iterator[CellResult]:
        """Results as they come, one for each cell.

        Raises:
            SweepError: the scheduler, or every worker, is gone; or one has come that has another emu.
        """
        waiting = deque(cells)
        under_way: dict[distributed.Future, Cell] = {}
        alone_since: float | None = None
        while waiting or under_way:
            workers = self._worker_count()
            while waiting and len(under_way) < max(workers, 1) * _AHEAD:
                cell = waiting.popleft()
                on_begin(cell)
                under_way[self._submit(cell)] = cell
            yield from self._finished(under_way)
            alone_since = None if workers else alone_since or time.monotonic()
            if alone_since and time.monotonic() - alone_since > _ALONE_S:
                raise SweepError(
                    f"--cluster {self._address}: no worker has been there for {_ALONE_S:.0f} s; what is done is kept; "
                    "start workers, and the sweep again"
                )

    def close(self) -> None:
        """Leave the cluster; what is under way there is forgotten."""
        # A scheduler that is gone cannot be told.
        with contextlib.suppress(Exception):
            self._client.close(timeout=_CONNECT_S)

    def _submit(self, cell: Cell) -> distributed.Future:
        # A key of its own: the scheduler may remember another sweep's cells.
        return self._client.submit(
            run_on_worker, cell, versions(), key=f"emu-cell-{cell.number}-{uuid.uuid4().hex}", resources={RESOURCE: 1}
        )

    def _finished(self, under_way: dict[distributed.Future, Cell]) -> Iterator[CellResult]:
        try:
            with self._client.as_current():
                done = distributed.wait(list(under_way), timeout=_LOOK_S, return_when="FIRST_COMPLETED").done
        except (TimeoutError, distributed.TimeoutError):
            done = set()
        for future in done:
            cell = under_way.pop(future)
            if future.status == "cancelled":
                raise self._lost()
            error = future.exception()
            if isinstance(error, KilledWorker):
                yield CellResult(cell, None, f"its worker was lost each time: {error}", 0.0)
            elif isinstance(error, SweepError):
                raise error
            elif error is not None:
                yield CellResult(cell, None, f"{type(error).__name__}: {error}", 0.0)
            else:
                try:
                    yield future.result(timeout=_FETCH_S)
                except (TimeoutError, distributed.TimeoutError):
                    # Its worker was lost with the result, and it runs once more.
                    under_way[future] = cell

    def _worker_count(self) -> int:
        if self._client.status != "running":
            raise self._lost()
        try:
            return len(self._client.nthreads())
        except (OSError, TimeoutError):
            raise self._lost() from None

    def _check_workers(self) -> None:
        said: dict[str, Any] = self._client.run(describe_worker, on_error="return")
        for worker, known in said.items():
            if isinstance(known, BaseException):
                raise SweepError(f"--cluster {self._address}: {worker}: {known}; install the same emu there")
            other = differing(known["versions"])
            if other:
                raise SweepError(f"--cluster {self._address}: {worker} has {other}; install the same emu there")
        if not any(known["resources"].get(RESOURCE, 0) >= 1 for known in said.values()):
            raise SweepError(
                f"--cluster {self._address}: no worker offers {RESOURCE}; start on each host: dask worker "
                f"{self._address} --nthreads 1 --resources {RESOURCE}=1"
            )

    def _lost(self) -> SweepError:
        return SweepError(
            f"--cluster {self._address}: the scheduler is gone; what is done is kept; start it, and the sweep again"
        )


def describe_worker(dask_worker: Any) -> dict[str, Any]:
    """On a worker: which emu it has, and what it offers."""
    return {"versions": versions(), "resources": dict(dask_worker.state.total_resources)}


def run_on_worker(cell: Cell, wanted: dict[str, str]) -> CellResult:
    """On a worker: run a cell in this worker's process for cells.

    Raises:
        SweepError: this worker came later than the others, and has another emu.
    """
    other = differing(wanted)
    if other:
        raise SweepError(f"the worker on {socket.gethostname()} is of another emu: the sweep has {other}")
    return _runner.run(cell)


class _Runner:
    """The process for cells of a worker; made when there is something to do."""

    def __init__(self) -> None:
        self._process: CellProcess | None = None
        self._turn = threading.Lock()
        atexit.register(self.close)

    def run(self, cell: Cell) -> CellResult:
        attempts = Attempts()
        # With more threads than --nthreads 1, still one at a time.
        with self._turn:
            while True:
                self._process = self._process or CellProcess()
                self._process.begin(cell)
                try:
                    return self._result(self._process)
                except CellProcessDiedError as death:
                    self.close()
                    if not attempts.may_retry(cell):
                        return given_up(cell, str(death))

    def close(self) -> None:
        process, self._process = self._process, None
        if process:
            process.close()

    @staticmethod
    def _result(process: CellProcess) -> CellResult:
        while True:
            result = process.receive()
            if result:
                return result


_runner = _Runner()
