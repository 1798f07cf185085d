"""A backend that wraps: its capabilities, the chips that it wraps, and that it never wraps itself."""

from __future__ import annotations

import pytest
from typing_extensions import override

from irqchip_core import selection
from irqchip_core.capabilities import IrqChipCap
from irqchip_core.chip import IrqChip
from irqchip_core.errors import NothingSuitable, UnknownName, WrongType
from irqchip_core.hookspecs import Backend, Probe
from irqchip_core.hypervisor.vcpu import Vm
from irqchip_core.plugins.discovery import Plugins, discover
from irqchip_core.selection import BACKEND_VARIABLE, create_irqchip
from irqchip_core.testing import FakeVm
from irqchip_core.wrapping.backend import WrapperBackend
from irqchip_core.wrapping.wrapped import WrappedIrqChip
from irqchip_core.x86.chip import IrqChipX86_64
from tests.core.table_chip import TableChip

pytestmark = pytest.mark.usefixtures("no_leaks")


class Inner(Backend):
    """Makes userspace chips, under a name of its own."""

    api_version = 1
    summary = "to be wrapped"

    def __init__(self, name: str, probe: Probe) -> None:
        self.name = name
        self._probe = probe

    @override
    def probe(self, vm: Vm) -> Probe:
        return self._probe

    @override
    def create(self, vm: Vm, vcpu_count: int) -> IrqChip:
        chip = create_irqchip("userspace", vm=vm, vcpu_count=vcpu_count, plugins=discover())
        chip.name = self.name
        return chip


class Odd(Inner):
    @override
    def create(self, vm: Vm, vcpu_count: int) -> IrqChip:
        return TableChip()


class Wrapping(WrapperBackend):
    name = "wrapping"
    api_version = 1
    summary = "wraps"
    rank = -1

    @override
    def wrap(self, inner: IrqChipX86_64) -> IrqChipX86_64:
        return WrappedIrqChip(inner)


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> Plugins:
    """Backends that are put in by the test are all there are."""
    found = discover(entry_points=[])
    monkeypatch.setattr(selection, "installed", lambda: found)
    monkeypatch.delenv(BACKEND_VARIABLE, raising=False)
    return found


def offer(plugins: Plugins, *backends: Backend) -> None:
    plugins.backends = {backend.name: backend for backend in backends}


OLD, WEAK = Probe("this kernel is too old"), Probe()
STRONG = Probe(capabilities=frozenset({IrqChipCap.X2APIC}))


def wrapped_by(chip: IrqChip) -> str:
    assert isinstance(chip, WrappedIrqChip)
    return chip.inner.name


def test_it_wraps_the_first_that_fits_and_can_do_the_same(plugins: Plugins) -> None:
    offer(plugins, Wrapping(), Inner("old", OLD), Inner("strong", STRONG), Inner("weak", WEAK))
    assert Wrapping().probe(FakeVm()) == STRONG
    with create_irqchip("wrapping", vm=FakeVm()) as chip:
        assert wrapped_by(chip) == "strong"


def test_it_wraps_the_one_it_names(plugins: Plugins) -> None:
    backend = Wrapping()
    backend.wraps = "weak"
    offer(plugins, backend, Inner("strong", STRONG), Inner("weak", WEAK))
    assert backend.probe(FakeVm()) == WEAK
    with create_irqchip("wrapping", vm=FakeVm()) as chip:
        assert wrapped_by(chip) == "weak"
    backend.wraps = "gone"
    with pytest.raises(NothingSuitable, match="its probe failed with UnknownName: no backend is called 'gone'"):
        create_irqchip("wrapping", vm=FakeVm())
    with pytest.raises(UnknownName):
        backend.create(FakeVm(), 1)


def test_the_users_wish_for_a_wrapper_is_not_its_own(plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(plugins, Wrapping(), Inner("weak", WEAK))
    monkeypatch.setenv(BACKEND_VARIABLE, "wrapping")
    with create_irqchip(vm=FakeVm()) as chip:
        assert wrapped_by(chip) == "weak"


def test_one_that_names_itself_is_refused(plugins: Plugins) -> None:
    backend = Wrapping()
    backend.wraps = "wrapping"
    offer(plugins, backend)
    with pytest.raises(NothingSuitable, match="wrapping: wraps: it is to wrap itself; name another one"):
        create_irqchip("wrapping", vm=FakeVm())


@pytest.mark.parametrize(
    ("inner", "reason"), [([], "none is installed"), ([Inner("old", OLD)], "old: this kernel is too old")]
)
def test_without_a_chip_to_wrap_it_says_why(plugins: Plugins, inner: list[Backend], reason: str) -> None:
    offer(plugins, Wrapping(), *inner)
    with pytest.raises(NothingSuitable, match=f"wrapping: there is no chip to wrap: {reason}"):
        create_irqchip("wrapping", vm=FakeVm())
    with pytest.raises(NothingSuitable, match="wrapping: there is no chip to wrap"):
        Wrapping().create(FakeVm(), 1)


def test_what_cannot_be_wrapped_is_closed(plugins: Plugins) -> None:
    offer(plugins, Wrapping(), Odd("odd", STRONG))
    with pytest.raises(WrongType, match="wrapping: wraps: table is not a chip of a PC"):
        create_irqchip("wrapping", vm=FakeVm())
