"""Lines of a trace to events, compiled: what is done for every line of a capture.

A line is known by its stamp, `[CPU] flags seconds.fraction: event:`, because a task's name before it may hold anything.
tracefs, `trace-cmd report` and `perf script` print the same stamp but for flags (perf and older trace-cmd have none)
and spaces; what follows are words `name=value`, in any order. Lines without a stamp, and those whose payload is text,
are left to Python: they are few.

Sources: `trace_print_context()` and `trace_print_lat_fmt()` in `kernel/trace/trace_output.c`; trace-cmd's
`tracecmd/trace-read.c`; `perf_sample__fprintf_start()` in `tools/perf/builtin-script.c`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from emu.capture.events import (
    ATTACH,
    CACHE_TAG_FLUSH,
    FAULT,
    FLUSH,
    FLUSH_END,
    FQ_FLUSH,
    FQ_FLUSH_END,
    FQ_INIT,
    FQ_INIT_END,
    FREED,
    INVALIDATION,
    INVALIDATION_END,
    MAP,
    MARK,
    PAGE_SHIFT,
    QUEUED,
    RING_FLUSHED,
    RING_FREE,
    RING_FREE_LOCKED,
    RING_FULL,
    RPCIT,
    RPCIT_END,
    SYNC,
    SYNC_END,
    SYNC_MAP,
    SYNC_MAP_END,
    TIMER,
    TIMER_END,
    UNMAP,
    event_t,
    ring_state_t,
)
from emu.native.compile import entry, inline, jit, slow
from emu.native.record import byte_at, deref, element, int64_t, struct

LONGEST_LINE_BYTES = 1 << 16
MOST_CPUS = 10_000
MOST_OWNERS = 1 << 16
OWNER_SLOTS = 1 << 17
WORD_SLOTS = 256

_TAG = 100
"""Not an event of its own: says whose the `map` or `unmap` is that follows."""
_TAGS = ("iommu_map", "iommu_map_nosync", "iommu_map_sg", "iommu_unmap", "iommu_unmap_fast")
_PROBES = {
    "map": MAP,
    "unmap": UNMAP,
    "tracing_mark_write": MARK,
    "print": MARK,
    "attach_device_to_domain": ATTACH,
    "io_page_fault": FAULT,
    "fl_in": FLUSH,
    "fl_out": FLUSH_END,
    "timer": TIMER,
    "q": QUEUED,
    "full": RING_FULL,
    "after": RING_FLUSHED,
    "fr": FREED,
    "free_iova_fast": FREED,
    "fq_ring_free": RING_FREE,
    "fq_ring_free_locked": RING_FREE_LOCKED,
    "cache_tag_flush_all": CACHE_TAG_FLUSH,
}
_CALLS = {
    "rpcit": (RPCIT, RPCIT_END),
    "s390_iotlb_sync_map": (SYNC_MAP, SYNC_MAP_END),
    "s390_iotlb_sync": (SYNC, SYNC_END),
    "intel_tlb_sync": (SYNC, SYNC_END),
    "amd_iotlb_sync": (SYNC, SYNC_END),
    "smmu_iotlb_sync": (SYNC, SYNC_END),
    "viommu_iotlb_sync": (SYNC, SYNC_END),
    "s390_flush_iotlb_all": (FLUSH, FLUSH_END),
    "intel_flush_iotlb_all": (FLUSH, FLUSH_END),
    "amd_flush_iotlb_all": (FLUSH, FLUSH_END),
    "smmu_flush_iotlb_all": (FLUSH, FLUSH_END),
    "viommu_flush_iotlb_all": (FLUSH, FLUSH_END),
    "fq_flush_timeout": (TIMER, TIMER_END),
    "fq_flush_iotlb": (FQ_FLUSH, FQ_FLUSH_END),
    "qi_submit_sync": (INVALIDATION, INVALIDATION_END),
    "iommu_dma_init_fq": (FQ_INIT, FQ_INIT_END),
}
"""Probes of a function's beginning and, with `_ret` (or perf probe's `__return`) after the name, of its return."""

KIND_OF = (
    _PROBES
    | dict.fromkeys(_TAGS, _TAG)
    | {name: begin for name, (begin, _) in _CALLS.items()}
    | {f"{name}{ending}": end for name, (_, end) in _CALLS.items() for ending in ("_ret", "__return")}
)
"""What each event's name means."""

_WORDS = (
    ("iova",),
    (" - ",),
    ("size",),
    ("addr",),
    ("range",),
    ("start",),
    ("end",),
    ("pfn",),
    ("pages",),
    ("head",),
    ("tail",),
    ("mask",),
    ("finish",),
    ("cnt",),
    ("ret",),
    ("dom", "fq", "fn"),
    ("paddr",),
)
(
    _IOVA,
    _UNTIL,
    _SIZE,
    _ADDR,
    _RANGE,
    _START,
    _END,
    _PFN,
    _PAGES,
    _HEAD,
    _TAIL,
    _MASK,
    _FINISH,
    _COUNT,
    _RET,
    _OWNER,
    _PADDR,
) = range(len(_WORDS))
ARGUMENT_OF = {word: argument for argument, words in enumerate(_WORDS) for word in words}
"""What each word before `=` means; an iova's end is printed after ` - `."""
ARGUMENTS = len(_WORDS)
PHYSICAL_WORD = "paddr"
"""Where it is not asked for, the scanner is not told this word, and passes it over like any other."""
TAGS_OF_A_CPU = 4

word_t = struct(word="i8", means="i8")
"""One slot of a table of words: open addressing, an empty slot ends the search."""

tag_t = struct(owner="i8", at="i8")
owner_slot_t = struct(key="i8", number="i8")
odd_line_t = struct(begin="i8", stop="i8", event="i8")
"""A line for Python: its place in the text and, when it is an event's, where its words begin and the event's index."""

scan_t = struct(
    text="i8",
    names="i8",
    words="i8",
    owner_slots="i8",
    owners="i8",
    owner_count="i8",
    tags="i8",
    arguments="i8",
    seen="i8",
    events="i8",
    event_count="i8",
    ring_states="i8",
    ring_state_count="i8",
    paddrs="i8",
    odd_lines="i8",
    odd_line_count="i8",
    line_count="i8",
    map_events="i8",
    unmap_events="i8",
    other_events="i8",
    broken_lines="i8",
    late_events="i8",
    last_ns="i8",
    highest_cpu="i8",
    mapping_owner="i8",
    several_owners="i8",
    grouped="i8",
    cpu="i8",
    level="i8",
    time_ns="i8",
    word="i8",
)
"""A scan: addresses of its tables, what it found so far, and from `cpu` on the stamp of the line in hand.

`paddrs` is 0 where nobody asks for physical addresses. `level` is how deep in interrupts it happened (0 none, 1 soft,
2 hard, 3 NMI), `word` the hash of the event's name, `grouped` counts names with a group before them (`iommu:map`), as
only perf prints them.
"""

_WORD_MASK = (1 << 48) - 1
_LARGEST_CHUNK_BYTES = 1 << 40
_ADDRESS_LIMIT = 1 << 62
_MOST_SECONDS = 9_000_000_000
_PAGE_OFFSETS = (1 << PAGE_SHIFT) - 1
_NEWLINE, _RETURN, _SPACE, _OPEN, _CLOSE, _POINT, _COLON, _EQUALS, _MINUS, _ZERO, _X = b"\n\r [].:=-0x"
_SOFTIRQ, _HARDIRQ, _BOTH_IRQS, _NMI, _NMI_IN_IRQ = b"shHzZ"


def word_hash(word: str) -> int:
    """What the scanner knows a word by."""
    value = 0
    for byte in word.encode():
        value = (value * 31 + byte) & _WORD_MASK
    return value


@inline
def _is_digit(byte: int) -> bool:
    return 48 <= byte <= 57


@inline
def _is_word(byte: int) -> bool:
    return 97 <= byte <= 122 or 48 <= byte <= 57 or byte == 95 or 65 <= byte <= 90


@inline
def _hex_digit(byte: int) -> int:
    """Value of a hexadecimal digit in lower case, -1 if it is none."""
    if 48 <= byte <= 57:
        return byte - 48
    if 97 <= byte <= 102:
        return byte - 87
    return -1


@inline
def _skip_spaces(text: int, at: int, stop: int) -> int:
    while at < stop and byte_at(text, at) == _SPACE:
        at += 1
    return at


@inline
def _skip_digits(text: int, at: int, stop: int) -> int:
    while at < stop and _is_digit(byte_at(text, at)):
        at += 1
    return at


@inline
def _decimal(text: int, at: int, stop: int) -> int:
    """Value of the digits in [at, stop), at most 18."""
    value = 0
    while at < stop:
        value = value * 10 + (byte_at(text, at) - 48)
        at += 1
    return value


@jit
def _interrupt_level(text: int, at: int, stop: int) -> int:
    """How deep in interrupts the flags in [at, stop) say it was."""
    level = 0
    while at < stop:
        flag = byte_at(text, at)
        if flag == _SOFTIRQ:
            level = max(level, 1)
        elif flag in (_HARDIRQ, _BOTH_IRQS):
            level = max(level, 2)
        elif flag in (_NMI, _NMI_IN_IRQ):
            level = max(level, 3)
        at += 1
    return level


@jit
def _read_time(scan: Any, at: int, stop: int) -> int:
    """Read `seconds.fraction:` at `at`; where it ends, 0 if it is none."""
    text = scan.text
    point = _skip_digits(text, at, stop)
    if point == at or point - at > 10 or point >= stop or byte_at(text, point) != _POINT:
        return 0
    colon = _skip_digits(text, point + 1, stop)
    digits = colon - point - 1
    if digits < 6 or digits > 9 or colon >= stop or byte_at(text, colon) != _COLON:
        return 0
    nanoseconds = _decimal(text, point + 1, colon)
    while digits < 9:
        nanoseconds *= 10
        digits += 1
    seconds = _decimal(text, at, point)
    if seconds > _MOST_SECONDS:
        return 0
    scan.time_ns = seconds * 1_000_000_000 + nanoseconds
    return colon + 1


@jit
def _read_name(scan: Any, at: int, stop: int) -> int:
    """Read `event:` or `group:event:` at `at`; where it ends, 0 if it is none."""
    text = scan.text
    begin, word, groups = at, 0, 0
    while at < stop:
        byte = byte_at(text, at)
        if _is_word(byte):
            word = (word * 31 + byte) & _WORD_MASK
        elif byte == _COLON and at > begin:
            if groups or at + 1 >= stop or not _is_word(byte_at(text, at + 1)):
                scan.word = word
                scan.grouped += groups
                return at + 1
            begin, word, groups = at + 1, 0, 1
        else:
            return 0
        at += 1
    return 0


@jit
def _read_stamp(scan: Any, at: int, stop: int) -> int:
    """Read `[CPU] flags seconds.fraction: event: ` at `at`; where the payload begins, 0 if there is no stamp."""
    text = scan.text
    close = _skip_digits(text, at + 1, stop)
    digits = close - at - 1
    if digits < 1 or digits > 4 or close + 1 >= stop or byte_at(text, close) != _CLOSE:
        return 0
    if byte_at(text, close + 1) != _SPACE:
        return 0
    scan.cpu = _decimal(text, at + 1, close)
    flags = _skip_spaces(text, close + 1, stop)
    scan.level = 0
    after = _read_time(scan, flags, stop)
    if after == 0:
        end = flags
        while end < stop and byte_at(text, end) != _SPACE:
            end += 1
        if end - flags > 16:
            return 0
        scan.level = _interrupt_level(text, flags, end)
        after = _read_time(scan, _skip_spaces(text, end, stop), stop)
    if after == 0 or after >= stop or byte_at(text, after) != _SPACE:
        return 0
    after = _read_name(scan, _skip_spaces(text, after, stop), stop)
    return _skip_spaces(text, after, stop) if after else 0


@jit
def _look_up(table: int, word: int) -> int:
    """What a table says of a word, -1 if it does not know it."""
    slot = word & (WORD_SLOTS - 1)
    while True:
        known = element(word_t, table, slot)
        if known.word == 0:
            return -1
        if known.word == word:
            return known.means
        slot = (slot + 1) & (WORD_SLOTS - 1)


@inline
def _set_argument(scan: Any, argument: int, value: int) -> None:
    element(int64_t, scan.arguments, argument).value = value
    scan.seen |= 1 << argument


@inline
def _argument(scan: Any, argument: int) -> int:
    return element(int64_t, scan.arguments, argument).value


@inline
def _has(scan: Any, argument: int) -> bool:
    return (scan.seen >> argument) & 1 != 0


@jit
def _read_value(scan: Any, argument: int, at: int, stop: int) -> int:
    """Read `0x` and hexadecimal digits, or a decimal number, as an argument; where it ends.

    What is not a number, or has more digits than 64 bits hold, is as if it had not been said.
    """
    text = scan.text
    # 64 bits, interpreted too: a kernel's pointer does not fit into 63.
    value = np.int64(0)
    if at + 1 < stop and byte_at(text, at) == _ZERO and byte_at(text, at + 1) == _X:
        at += 2
        begin = at
        while at < stop:
            digit = _hex_digit(byte_at(text, at))
            if digit < 0:
                break
            value = (value << 4) | digit
            at += 1
        most = 16
    else:
        is_negative = at < stop and byte_at(text, at) == _MINUS
        at += is_negative
        begin = at
        at = _skip_digits(text, at, stop)
        value = _decimal(text, begin, min(at, begin + 18))
        value = -value if is_negative else value
        most = 18
    is_whole = at == stop or not _is_word(byte_at(text, at))
    if begin < at <= begin + most and is_whole:
        _set_argument(scan, argument, value)
    return at


@jit
def _read_until(scan: Any, at: int, stop: int) -> int:
    """Read the ` - 0x…` that may follow an iova; where it ends."""
    text = scan.text
    if (
        at + 3 < stop
        and byte_at(text, at) == _SPACE
        and byte_at(text, at + 1) == _MINUS
        and byte_at(text, at + 2) == _SPACE
    ):
        return _read_value(scan, _UNTIL, at + 3, stop)
    return at


@jit
def _read_arguments(scan: Any, at: int, stop: int) -> None:
    """Read every `name=value` that means something; the first of a name counts."""
    text = scan.text
    scan.seen = 0
    word = 0
    while at < stop:
        byte = byte_at(text, at)
        at += 1
        if _is_word(byte):
            word = (word * 31 + byte) & _WORD_MASK
            continue
        if byte == _EQUALS:
            argument = _look_up(scan.words, word)
            if argument >= 0 and not _has(scan, argument):
                at = _read_value(scan, argument, at, stop)
                if argument == _IOVA:
                    at = _read_until(scan, at, stop)
        word = 0


@slow
def _new_owner(scan: Any, slot: Any, key: int) -> int:
    """Give a pointer the next number; 0 when there are too many."""
    if scan.owner_count >= MOST_OWNERS:
        return 0
    slot.key = key
    slot.number = scan.owner_count
    element(int64_t, scan.owners, scan.owner_count).value = key
    scan.owner_count += 1
    return slot.number


@jit
def _owner_number(scan: Any) -> int:
    """The number of the pointer that the line names, 0 if it names none."""
    if not _has(scan, _OWNER):
        return 0
    key = _argument(scan, _OWNER)
    if key == 0:
        return 0
    at = (key ^ (key >> 8) ^ (key >> 20)) & (OWNER_SLOTS - 1)
    while True:
        slot = element(owner_slot_t, scan.owner_slots, at)
        if slot.key == key:
            return slot.number
        if slot.key == 0:
            return _new_owner(scan, slot, key)
        at = (at + 1) & (OWNER_SLOTS - 1)


@inline
def _tag(scan: Any) -> Any:
    return element(tag_t, scan.tags, scan.cpu * TAGS_OF_A_CPU + scan.level)


@jit
def _take_tag(scan: Any, at: int, stop: int) -> None:
    """Remember whose the next `map` or `unmap` on this CPU, at this level of interrupts, is."""
    scan.other_events += 1
    _read_arguments(scan, at, stop)
    tag = _tag(scan)
    tag.owner = _owner_number(scan)
    tag.at = _argument(scan, _IOVA) if _has(scan, _IOVA) else -1


@jit
def _mapping_owner(scan: Any, start: int, end: int) -> int:
    """Whose a `map` or `unmap` is: a tag holds for the chunks that follow each other from its address on."""
    tag = _tag(scan)
    if tag.owner == 0 or tag.at != start:
        return 0
    tag.at = end
    if scan.mapping_owner == 0:
        scan.mapping_owner = tag.owner
    elif scan.mapping_owner != tag.owner:
        scan.several_owners = 1
    return tag.owner


@jit
def _new_event(scan: Any, kind: int, owner: int, start: int, end: int) -> None:
    event = element(event_t, scan.events, scan.event_count)
    event.kind = kind
    event.irq = scan.level > 0
    event.owner = owner
    event.cpu = scan.cpu
    event.time_ns = scan.time_ns
    event.start = start
    event.end = end
    scan.event_count += 1
    scan.late_events += scan.time_ns < scan.last_ns
    scan.last_ns = scan.time_ns
    scan.highest_cpu = max(scan.highest_cpu, scan.cpu)


@inline
def _said_or_none(scan: Any, argument: int) -> int:
    return _argument(scan, argument) if _has(scan, argument) else -1


@slow
def _note_paddr(scan: Any) -> None:
    """Which memory the chunk in hand maps; -1 where its line does not say."""
    element(int64_t, scan.paddrs, scan.map_events).value = _said_or_none(scan, _PADDR)


@jit
def _take_chunk(scan: Any, kind: int) -> None:
    """A `map` or `unmap`, whose numbers must agree with each other. Until Linux 5.14 its end was not printed."""
    start, size = _argument(scan, _IOVA), _argument(scan, _SIZE)
    is_said = _has(scan, _IOVA) and _has(scan, _SIZE)
    is_sound = is_said and 0 <= start < _ADDRESS_LIMIT and 0 < size <= _LARGEST_CHUNK_BYTES
    if (
        not is_sound
        or (start | size) & _PAGE_OFFSETS
        or (_has(scan, _UNTIL) and _argument(scan, _UNTIL) - start != size)
    ):
        scan.broken_lines += 1
        return
    _new_event(scan, kind, _mapping_owner(scan, start, start + size), start, start + size)
    if kind == MAP:
        if scan.paddrs:
            _note_paddr(scan)
        scan.map_events += 1
    else:
        scan.unmap_events += 1


@jit
def _take_range(scan: Any, kind: int, start: int, length: int, shift: int) -> int:
    """An event over [start, start + length), both still to be shifted; 0 if they are not there or make no sense."""
    is_said = _has(scan, start) and _has(scan, length)
    first, count = _argument(scan, start), _argument(scan, length)
    limit = _ADDRESS_LIMIT >> shift
    if not is_said or first < 0 or count <= 0 or first > limit or count > limit - first:
        scan.broken_lines += 1
        return 0
    _new_event(scan, kind, _owner_number(scan), first << shift, (first + count) << shift)
    return 1


@jit
def _take_sync(scan: Any) -> None:
    """A strict unmap's flush: its last byte is named, and where nothing was gathered its end is before its start."""
    first, last = _argument(scan, _START), _argument(scan, _END)
    is_said = _has(scan, _START) and _has(scan, _END)
    if is_said and 0 <= first <= last < _ADDRESS_LIMIT:
        _new_event(scan, SYNC, _owner_number(scan), first, last + 1)
    else:
        _new_event(scan, SYNC, _owner_number(scan), 0, 0)


@jit
def _note_ring_state(scan: Any) -> None:
    """What the last event's line says of the ring and of the flushes so far."""
    if not (scan.seen >> _HEAD) & 1 and not (scan.seen >> _START) & 1 and not (scan.seen >> _COUNT) & 1:
        return
    state = element(ring_state_t, scan.ring_states, scan.ring_state_count)
    state.event = scan.event_count - 1
    state.head = _said_or_none(scan, _HEAD)
    state.tail = _said_or_none(scan, _TAIL)
    state.mask = _said_or_none(scan, _MASK)
    state.started = _argument(scan, _COUNT) if _has(scan, _COUNT) else _said_or_none(scan, _START)
    state.finished = _said_or_none(scan, _FINISH)
    scan.ring_state_count += 1


@jit
def _take_event(scan: Any, kind: int, at: int, stop: int) -> None:
    _read_arguments(scan, at, stop)
    if kind in (MAP, UNMAP):
        _take_chunk(scan, kind)
    elif kind == RPCIT:
        _take_range(scan, kind, _ADDR, _RANGE, 0)
    elif kind == SYNC_MAP:
        _take_range(scan, kind, _IOVA, _SIZE, 0)
    elif kind == FREED:
        _take_range(scan, kind, _PFN, _PAGES, PAGE_SHIFT)
    elif kind in (QUEUED, RING_FLUSHED):
        if _take_range(scan, kind, _PFN, _PAGES, PAGE_SHIFT):
            _note_ring_state(scan)
    elif kind == SYNC:
        _take_sync(scan)
    elif kind in (FLUSH, FLUSH_END, RING_FULL):
        _new_event(scan, kind, _owner_number(scan), 0, 0)
        _note_ring_state(scan)
    elif kind == FAULT:
        _new_event(scan, kind, 0, _argument(scan, _IOVA) if _has(scan, _IOVA) else 0, 0)
    else:
        _new_event(scan, kind, _owner_number(scan), _argument(scan, _RET) if _has(scan, _RET) else 0, 0)


@slow
def _leave_to_python(scan: Any, begin: int, stop: int, event: int) -> None:
    odd = element(odd_line_t, scan.odd_lines, scan.odd_line_count)
    odd.begin = begin
    odd.stop = stop
    odd.event = event
    scan.odd_line_count += 1


@jit
def _take_line(scan: Any, begin: int, stop: int) -> None:
    text = scan.text
    if stop > begin and byte_at(text, stop - 1) == _RETURN:
        stop -= 1
    at = begin
    while at < stop:
        if byte_at(text, at) == _OPEN:
            payload = _read_stamp(scan, at, stop)
            if payload:
                kind = _look_up(scan.names, scan.word)
                if kind < 0:
                    scan.other_events += 1
                elif kind == _TAG:
                    _take_tag(scan, payload, stop)
                elif kind in (MARK, ATTACH):
                    _leave_to_python(scan, payload, stop, scan.event_count)
                    _new_event(scan, kind, 0, 0, 0)
                else:
                    _take_event(scan, kind, payload, stop)
                return
        at += 1
    _leave_to_python(scan, begin, stop, -1)


@entry
def scan_lines(scan_address: int, length: int) -> int:
    """Take in the lines of `scan.text`, `length` bytes that end with a newline; returns how many lines.

    There must be room for as many more events, ring states and odd lines as there are lines, and where `scan.paddrs` is
    not 0, physical addresses. A line longer than `LONGEST_LINE_BYTES` is taken as several.
    """
    scan = deref(scan_t, scan_address)
    begin = at = lines = 0
    while at < length:
        if byte_at(scan.text, at) == _NEWLINE:
            while at - begin > LONGEST_LINE_BYTES:
                _take_line(scan, begin, begin + LONGEST_LINE_BYTES)
                begin += LONGEST_LINE_BYTES
                lines += 1
            _take_line(scan, begin, at)
            begin = at + 1
            lines += 1
        at += 1
    scan.line_count += lines
    return lines
