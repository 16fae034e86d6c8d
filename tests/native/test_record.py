"""Records are C structs, and pointers reach the memory itself."""

import ctypes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emu.native.compile import jit
from emu.native.record import CACHE_LINE, NULL, address_of, byte_at, deref, element, int64_t, pointer_to, struct

from .harness import at, shared

pytestmark = pytest.mark.interpreted

C_TYPES = {
    "i1": ctypes.c_int8,
    "u2": ctypes.c_uint16,
    "i4": ctypes.c_int32,
    "u4": ctypes.c_uint32,
    "i8": ctypes.c_int64,
    "f8": ctypes.c_double,
}

pair_t = struct(first="i4", second="i8")
nested_t = struct(before="i4", pair=pair_t, after="i1")


@given(st.lists(st.sampled_from(sorted(C_TYPES)), min_size=1, max_size=8))
def test_a_struct_is_laid_out_as_a_c_compiler_would(kinds):
    names = [f"field_{i}" for i in range(len(kinds))]
    form = struct(**dict(zip(names, kinds, strict=True)))
    fields = [(name, C_TYPES[kind]) for name, kind in zip(names, kinds, strict=True)]
    c_struct = type("c_struct", (ctypes.Structure,), {"_fields_": fields})
    assert form.itemsize == ctypes.sizeof(c_struct)
    assert [form.fields[name][1] for name in names] == [getattr(c_struct, name).offset for name in names]


def test_a_struct_in_a_struct_is_laid_out_as_a_c_compiler_would():
    assert [nested_t.fields[name][1] for name in nested_t.names] == [0, 8, 24]
    assert nested_t.itemsize == 32


@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_a_field_with_a_line_of_its_own_shares_none_with_what_precedes_it(own_line):
    names = [f"field_{i}" for i in range(len(own_line))]
    lines = tuple(name for name, own in zip(names, own_line, strict=True) if own)
    form = struct(lines=lines, **dict.fromkeys(names, "i8"))
    for name in lines:
        assert form.fields[name][1] % CACHE_LINE == 0
    assert form.itemsize % CACHE_LINE == 0 or not lines


def test_a_pointer_reaches_the_memory_itself():
    array = shared(pair_t, 3)
    deref(pair_t, at(array, 1)).second = 7
    element(pair_t, at(array), 2).second = 8
    assert array["second"].tolist() == [0, 7, 8]


def test_a_nested_record_is_a_part_of_the_memory_not_a_copy():
    array = shared(nested_t)
    record = deref(nested_t, at(array))
    record.pair.second = 5
    assert array["pair"]["second"][0] == 5
    assert pointer_to(record.pair) == at(array) + 8
    assert address_of(record.pair, "second") == at(array) + 16


def test_pointers_and_addresses_are_inverse():
    array = shared(nested_t, 2)
    record = deref(nested_t, at(array, 1))
    assert pointer_to(record) == at(array, 1)
    assert deref(int64_t, address_of(record, "after")) is not None
    assert address_of(record, "after") == at(array, 1) + 24


def test_following_null_is_an_error_where_python_can_say_so():
    with pytest.raises(ValueError, match="NULL"):
        deref(int64_t, NULL)


def test_addresses_may_be_numpy_integers():
    array = shared(int64_t, 2)
    element(int64_t, np.int64(at(array)), np.int64(1)).value = 3
    assert array.value.tolist() == [0, 3]


@jit
def byte_of(address, index):
    return byte_at(address, index)


@pytest.mark.parametrize("read", [byte_at, byte_of], ids=["plain", "compiled"])
def test_a_byte_has_no_sign(read):
    octets = np.array([0, 1, 127, 128, 255], np.uint8)
    assert [read(octets.ctypes.data, index) for index in range(5)] == [0, 1, 127, 128, 255]


def test_a_pointer_and_a_short_field_add_up_to_a_pointer():
    array = shared(pair_t, 2)
    array["first"] = 8
    record = deref(pair_t, at(array))
    assert address_of(record, "second") + record.first == pointer_to(record) + 2 * record.first == at(array, 1)
