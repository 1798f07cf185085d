"""What a chip may or may not have: the contract's own capabilities, and those that plugins add.

No chip is imported here: plugins are found, and capabilities named, without one.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import field, frozen

if TYPE_CHECKING:
    from irqchip_core.chip import IrqChip


class IrqChipCap(enum.Enum):
    """What a chip may or may not have. Values are the names used on the command line."""

    PIC = "pic"
    """The pair of 8259 interrupt controllers."""
    IOAPIC = "ioapic"
    """An IOAPIC."""
    PIT = "pit"
    """The 8254 timer."""
    LOCAL_APIC = "local_apic"
    """A local APIC for each vCPU."""
    MSI = "msi"
    """A GSI can be routed to a message, which the local APICs take."""
    TSC_DEADLINE_TIMER = "tsc_deadline_timer"
    """The local APIC timer has TSC-deadline mode (Intel SDM vol. 3, 12.5.4.1)."""
    X2APIC = "x2apic"
    """The local APICs can be switched to x2APIC mode (Intel SDM vol. 3, 12.12)."""
    MP_STATE_GET_SET = "mp_state_get_set"
    """`get_mp_state` and `set_mp_state` work."""


PC_CONTROLLERS = frozenset({IrqChipCap.PIC, IrqChipCap.IOAPIC, IrqChipCap.PIT, IrqChipCap.LOCAL_APIC, IrqChipCap.MSI})
"""The controllers of a PC. The chip of a micro-VM has fewer: local APICs and messages, for instance."""


@frozen
class Capability:
    """A capability that a plugin adds to those of `IrqChipCap`, by the hook `irqchip_capabilities`.

    Attributes:
        value: Its name on the command line: lower case letters, digits and underscores. It stands for the capability:
            a backend may claim it by an object of its own.
        meaning: One line.
        has: Whether a chip has it.
    """

    value: str
    meaning: str = field(eq=False)
    has: Callable[[IrqChip], bool] = field(eq=False, repr=False)


AnyCapability = IrqChipCap | Capability


def has_capability(chip: IrqChip, capability: AnyCapability) -> bool:
    """Whether `chip` has a capability, one of a plugin's included.

    Raises:
        WrongType: It is no capability.
    """
    return capability.has(chip) if isinstance(capability, Capability) else chip.check_capability(capability)
