"""No module imports another one in a circle at run time, and no room of a package does."""

from __future__ import annotations

import graphlib
from collections.abc import Callable

import grimp
import pytest

PACKAGES = [
    "irqchip_core",
    "irqchip_kvm",
    "irqchip_unicorn",
    "irqchip_kvm_kernel",
    "irqchip_kvm_split",
    "irqchip_userspace",
    "irqchip_vmm",
]


@pytest.fixture(scope="module")
def imports() -> list[tuple[str, str]]:
    """Importer and imported of each import, those inside functions too, but not those for type checkers only."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    found = [(importer, one) for importer in graph.modules for one in graph.find_modules_directly_imported_by(importer)]
    assert ("irqchip_core.irq_loop", "irqchip_core.chip") in found
    return found


def room_in(package: str) -> Callable[[str], str]:
    """What stands directly in `package`, and has a module in it or is one; other modules are themselves."""
    depth = package.count(".") + 2
    return lambda module: ".".join(module.split(".")[:depth]) if module.startswith(f"{package}.") else module


def circle(imports: list[tuple[str, str]], place: Callable[[str], str]) -> list[str]:
    """A circle of imports between places; empty if there is none."""
    sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
    for importer, imported in imports:
        if place(importer) != place(imported):
            sorter.add(place(importer), place(imported))
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        found: list[str] = error.args[1]
        return found
    return []


def test_no_module_imports_in_a_circle(imports: list[tuple[str, str]]) -> None:
    assert circle(imports, lambda module: module) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_room_imports_in_a_circle(imports: list[tuple[str, str]], package: str) -> None:
    assert circle(imports, room_in(package)) == []


def test_a_circle_is_found() -> None:
    imports = [("one.a", "one.b.c"), ("one.b.d", "one.e"), ("one.e", "one.a")]
    assert circle(imports, lambda module: module) == []
    assert set(circle(imports, room_in("one"))) == {"one.a", "one.b", "one.e"}
    assert circle([*imports, ("one.b.c", "one.b.d")], lambda module: module) != []
