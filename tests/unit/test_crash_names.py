"""Every crash point of the source is passed by a walk of tests/functional, or there is a reason why not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache

from raksha.vault import crash_store, names
from raksha.vault.store import BACKUPS, SEGMENTS
from tests.functional.crash_names import NOT_WALKED, WALKED
from tests.unit.test_crash_points import Call, calls, modules

#: names that are made of others, each where its maker is called
MADE = {
    ("journal.py", "f'journal.{name}'"): "self._transaction",
    ("virt/libvirt/connection.py", "f'libvirt.{function.__name__}'"): "self._change self._open",
    ("virt/libvirt/image.py", "f'qemu-img.{arguments[0]}'"): "_change",
    ("vault/crash_store.py", "f'vault.{action}.{kind(name)}'"): "_around",
}
OBJECTS = [
    f"{SEGMENTS}/00/0", names.key("k"), names.epoch(1), names.VAULT,
    *(f"{BACKUPS}/job/run/{leaf}" for leaf in (names.RUN_FILE, names.VM_FILE, names.METADATA_FILE, names.IMAGE_FILE)),
    f"{BACKUPS}/job/run/{names.MAP_PREFIX}0",
]  # fmt: skip


@cache
def source_points() -> frozenset[str]:
    """All names; of the vault's only what is done, as `vault.put.`."""
    return frozenset(_source_points())


def _source_points() -> Iterator[str]:
    for module, tree in modules().items():
        found = list(calls(tree, module))
        for call in found:
            if ast.unparse(call.node.func) == "crash.around":
                name = call.node.args[0]
                if isinstance(name, ast.Constant):
                    yield str(name.value)
                else:
                    makers = MADE[module, ast.unparse(name)].split()
                    yield from made(module, [each for each in found if ast.unparse(each.node.func) in makers])


def made(module: str, found: list[Call]) -> Iterator[str]:
    assert found, module
    for call in found:
        first = call.node.args[0]
        match module:
            case "journal.py":
                yield f"journal.{ast.literal_eval(first)}"
            case "vault/crash_store.py":
                yield f"vault.{ast.literal_eval(first)}."
            case "virt/libvirt/image.py":
                assert isinstance(first, ast.List)
                yield f"qemu-img.{ast.literal_eval(first.elts[0])}"
            case _:
                function = call.node.args[1]
                if isinstance(function, ast.Attribute):  # else `_open` passes on what it was given
                    yield f"libvirt.{function.attr}"


def of_an_object(point: str) -> bool:
    return point.startswith("vault.") and point != "vault.prepare"


def walked() -> list[str]:
    return [name for every in WALKED.values() for name in every.split()]


def test_every_point_is_walked_or_has_a_reason() -> None:
    points = {point for point in source_points() if not of_an_object(point)}
    passed = {point for point in walked() if not of_an_object(point)}
    assert len(points) > 60
    assert points - passed - set(NOT_WALKED) == set(), "points that no walk passes"
    assert (passed | set(NOT_WALKED)) - points == set(), "not in the source any more"


def test_every_change_of_a_vault_and_every_object_is_walked() -> None:
    """Which object is changed in which way is the vault's matter; each way and each object come up."""
    passed = [point.split(".", 2)[1:] for point in walked() if of_an_object(point)]
    assert {f"vault.{action}." for action, _ in passed} == {each for each in source_points() if of_an_object(each)}
    assert {object for _, object in passed} == {crash_store.kind(name) for name in OBJECTS}


def test_nothing_stands_there_twice() -> None:
    assert len(walked()) == len(set(walked()))
    assert not set(walked()) & set(NOT_WALKED)
