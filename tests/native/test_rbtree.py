"""The tree agrees with a sorted list, stays red-black, and its thread follows its order."""

import bisect
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emu.native.rbtree import rb_node, rb_root
from emu.native.record import struct

from . import harness
from .harness import at, scaled, shared

pytestmark = pytest.mark.interpreted

item_t = struct(node=rb_node, key="i8")
LAST_KEY = 1 << 40


class Tree:
    """A tree in memory, and the sorted list that it should equal."""

    def __init__(self, size):
        self.root = shared(rb_root)
        self.items = shared(item_t, size + 1)
        self.items.key[size] = LAST_KEY
        self.free = list(range(size))
        self.sorted = [(LAST_KEY, size)]
        harness.link_last(at(self.root), at(self.items, size))

    def insert(self, key):
        index = self.free.pop()
        self.items.key[index] = key
        place = bisect.bisect(self.sorted, (key, index))
        harness.link_before(at(self.root), at(self.items, index), at(self.items, self.sorted[place][1]))
        self.sorted.insert(place, (key, index))

    def erase(self, place):
        _, index = self.sorted.pop(place)
        harness.erase(at(self.root), at(self.items, index))
        self.free.append(index)

    def field(self, address, name):
        index = (address - at(self.items)) // item_t.itemsize
        return int(self.items.node[name][index])

    def check(self):
        root = int(self.root.node[0])
        assert self.field(root, "parent") == 0
        assert not self.field(root, "red"), "the root is black"
        in_order = []
        self.black_height(root, in_order)
        assert in_order == [at(self.items, index) for _, index in self.sorted]
        assert [self.field(node, "next") for node in in_order] == [*in_order[1:], 0]
        assert [self.field(node, "prev") for node in in_order] == [0, *in_order[:-1]]

    def black_height(self, address, in_order):
        """Black nodes on every way down from here; appends the nodes in order."""
        if address == 0:
            return 0
        left, right, red = (self.field(address, name) for name in ("left", "right", "red"))
        for child in (left, right):
            assert child == 0 or self.field(child, "parent") == address
            assert not (red and child and self.field(child, "red")), "a red node's children are black"
        height = self.black_height(left, in_order)
        in_order.append(address)
        assert self.black_height(right, in_order) == height, "all ways down have as many black nodes"
        return height + (not red)


def step(tree, insert, number):
    """Insert a key, or erase a node that is not the last."""
    if (insert and tree.free) or len(tree.sorted) == 1:
        tree.insert(number)
    else:
        tree.erase(number % (len(tree.sorted) - 1))


@settings(max_examples=scaled(60, 15))
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=60))
def test_a_tree_equals_a_sorted_list_after_every_step(steps):
    tree = Tree(20)
    for insert, number in steps:
        step(tree, insert, number)
        tree.check()


@pytest.mark.parametrize("share_of_inserts", [0.4, 0.5, 0.9])
def test_a_large_tree_equals_a_sorted_list(share_of_inserts):
    dice = random.Random(share_of_inserts)  # noqa: S311 - not a secret
    tree = Tree(300)
    for i in range(scaled(3000, 400)):
        step(tree, dice.random() < share_of_inserts, dice.randrange(1000))
        if i % 50 == 0:
            tree.check()
    while len(tree.sorted) > 1:
        tree.erase(dice.randrange(len(tree.sorted) - 1))
    tree.check()


def test_equal_keys_keep_the_order_in_which_they_were_linked():
    tree = Tree(3)
    for _ in range(3):
        index = tree.free.pop(0)
        harness.link_before(at(tree.root), at(tree.items, index), at(tree.items, 3))
        tree.sorted.insert(len(tree.sorted) - 1, (0, index))
    tree.check()
