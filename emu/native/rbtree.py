"""Red-black tree of nodes in the segment, as lib/rbtree.c, with the order also threaded through the nodes.

Users embed `rb_node` as the first field of their record, so a node's address is the record's. The thread (`prev`,
`next`) makes rb_prev and rb_next one load, and names the place of a new node: right before its successor. A tree
therefore always holds a last node, which its owner links first and never erases. Seen from there by `prev`, a node is
in the tree or not, at any instruction: should a process die in the midst of rebalancing, that is the truth from which
the tree can be built anew.
"""

from __future__ import annotations

from typing import Any

from emu.native.atomics import barrier
from emu.native.compile import inline, slow
from emu.native.record import deref, struct

rb_node = struct(parent="i8", left="i8", right="i8", red="i8", prev="i8", next="i8")
rb_root = struct(node="i8")


@inline
def _is_red(address: int) -> bool:
    return address != 0 and deref(rb_node, address).red != 0


@inline
def _replace_child(root: Any, parent: int, old: int, new: int) -> None:
    if parent == 0:
        root.node = new
    elif deref(rb_node, parent).left == old:
        deref(rb_node, parent).left = new
    else:
        deref(rb_node, parent).right = new


@slow
def _rotate_left(root: Any, x: int) -> None:
    node = deref(rb_node, x)
    y = node.right
    other = deref(rb_node, y)
    node.right = other.left
    if other.left:
        deref(rb_node, other.left).parent = x
    other.parent = node.parent
    _replace_child(root, node.parent, x, y)
    other.left = x
    node.parent = y


@slow
def _rotate_right(root: Any, x: int) -> None:
    node = deref(rb_node, x)
    y = node.left
    other = deref(rb_node, y)
    node.left = other.right
    if other.right:
        deref(rb_node, other.right).parent = x
    other.parent = node.parent
    _replace_child(root, node.parent, x, y)
    other.right = x
    node.parent = y


@slow
def rb_link_last(root: Any, address: int) -> None:
    """Make the node the only one of an empty tree; it stays the last."""
    node = deref(rb_node, address)
    node.parent = node.left = node.right = node.prev = node.next = node.red = 0
    root.node = address


@slow
def rb_link_before(root: Any, address: int, successor: int) -> None:
    """Insert a node right before `successor` and rebalance."""
    node = deref(rb_node, address)
    after = deref(rb_node, successor)
    if after.left == 0:
        after.left = address
        node.parent = successor
    else:
        deref(rb_node, after.prev).right = address
        node.parent = after.prev
    node.left = node.right = 0
    node.red = 1
    node.prev = after.prev
    node.next = successor
    if after.prev:
        deref(rb_node, after.prev).next = address
    barrier()
    after.prev = address
    _insert_color(root, address)


@slow
def _insert_color(root: Any, address: int) -> None:
    x = address
    while True:
        parent = deref(rb_node, x).parent
        if parent == 0:
            deref(rb_node, x).red = 0
            return
        if deref(rb_node, parent).red == 0:
            return
        grandparent = deref(rb_node, parent).parent
        is_left = deref(rb_node, grandparent).left == parent
        uncle = deref(rb_node, grandparent).right if is_left else deref(rb_node, grandparent).left
        if _is_red(uncle):
            deref(rb_node, parent).red = 0
            deref(rb_node, uncle).red = 0
            deref(rb_node, grandparent).red = 1
            x = grandparent
            continue
        if is_left:
            if deref(rb_node, parent).right == x:
                _rotate_left(root, parent)
                parent = x
            _rotate_right(root, grandparent)
        else:
            if deref(rb_node, parent).left == x:
                _rotate_right(root, parent)
                parent = x
            _rotate_left(root, grandparent)
        deref(rb_node, parent).red = 0
        deref(rb_node, grandparent).red = 1
        return


@slow
def rb_erase(root: Any, address: int) -> None:
    """Take a node out and rebalance."""
    node = deref(rb_node, address)
    if node.left == 0 or node.right == 0:
        child = node.left + node.right
        parent = node.parent
        was_red = node.red
        _replace_child(root, parent, address, child)
        if child:
            deref(rb_node, child).parent = parent
    else:
        y = node.next
        heir = deref(rb_node, y)
        child = heir.right
        was_red = heir.red
        if heir.parent == address:
            parent = y
        else:
            parent = heir.parent
            deref(rb_node, parent).left = child
            if child:
                deref(rb_node, child).parent = parent
            heir.right = node.right
            deref(rb_node, heir.right).parent = y
        _replace_child(root, node.parent, address, y)
        heir.parent = node.parent
        heir.left = node.left
        deref(rb_node, heir.left).parent = y
        heir.red = node.red
    if node.prev:
        deref(rb_node, node.prev).next = node.next
    if node.next:
        deref(rb_node, node.next).prev = node.prev
    if was_red == 0:
        _erase_color(root, child, parent)


@slow
def _erase_color(root: Any, child: int, of: int) -> None:
    x = child
    parent = of
    while parent != 0 and not _is_red(x):
        p = deref(rb_node, parent)
        if p.left == x:
            sibling = p.right
            if _is_red(sibling):
                deref(rb_node, sibling).red = 0
                p.red = 1
                _rotate_left(root, parent)
                sibling = p.right
            s = deref(rb_node, sibling)
            if not _is_red(s.left) and not _is_red(s.right):
                s.red = 1
                x = parent
                parent = p.parent
                continue
            if not _is_red(s.right):
                deref(rb_node, s.left).red = 0
                s.red = 1
                _rotate_right(root, sibling)
                sibling = p.right
            s = deref(rb_node, sibling)
            s.red = p.red
            p.red = 0
            deref(rb_node, s.right).red = 0
            _rotate_left(root, parent)
        else:
            sibling = p.left
            if _is_red(sibling):
                deref(rb_node, sibling).red = 0
                p.red = 1
                _rotate_right(root, parent)
                sibling = p.left
            s = deref(rb_node, sibling)
            if not _is_red(s.left) and not _is_red(s.right):
                s.red = 1
                x = parent
                parent = p.parent
                continue
            if not _is_red(s.left):
                deref(rb_node, s.right).red = 0
                s.red = 1
                _rotate_left(root, sibling)
                sibling = p.left
            s = deref(rb_node, sibling)
            s.red = p.red
            p.red = 0
            deref(rb_node, s.left).red = 0
            _rotate_right(root, parent)
        x = root.node
        break
    if x:
        deref(rb_node, x).red = 0


@slow
def rb_rebuild(root: Any, last: int) -> int:
    """Build the tree anew from what `prev` threads, `last` being its last node. Returns how many other nodes it has."""
    nodes = 0
    following = last
    address = deref(rb_node, last).prev
    while address:
        node = deref(rb_node, address)
        node.next = following
        following = address
        address = node.prev
        nodes += 1
    rb_link_last(root, last)
    while following != last:
        address = following
        following = deref(rb_node, address).next
        rb_link_before(root, address, last)
    return nodes
