"""Interrupt messages: what travels between devices, IOAPICs and local APICs, and its encodings.

One `Message` has four encodings: the address and data of an MSI (Intel SDM vol. 3, 12.11), an IOAPIC
redirection entry (82093AA data sheet, 3.2.4), and the interrupt command register of a local APIC in
xAPIC mode (SDM 12.6.1) and in x2APIC mode (SDM 12.12.9).

Not here: which local APICs receive a message (`destinations`), and what they do with it (`lapic`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

# Delivery mode (SDM 12.6.1, 12.11.2; 82093AA 3.2.4)
FIXED = 0
LOWEST_PRIORITY = 1
SMI = 2
REMOTE_READ = 3  # reserved since the Pentium
NMI = 4
INIT = 5
STARTUP = 6
EXTINT = 7

# Destination mode
PHYSICAL = 0
LOGICAL = 1

# Trigger mode
EDGE = 0
LEVEL = 1

# Destination shorthand
NO_SHORTHAND = 0
SELF = 1
ALL_INCLUDING_SELF = 2
ALL_EXCLUDING_SELF = 3

XAPIC_BROADCAST = 0xFF
BROADCAST = 0xFFFFFFFF
"""Destination that names every local APIC: XAPIC_BROADCAST in the 8-bit encodings."""

# fmt: off

# Fields that MSI data, redirection entries and the interrupt command register have at the same place
VECTOR_MASK                    = 0xFF       # bits 0-7
DELIVERY_MODE_SHIFT            = 8          # bits 8-10
DELIVERY_MODE_MASK             = 7 << DELIVERY_MODE_SHIFT

# MSI address (SDM 12.11.1)
MSI_DESTINATION_MODE_SHIFT     = 2
MSI_REDIRECTION_HINT           = 1 << 3
MSI_DESTINATION_SHIFT          = 12         # bits 12-19: bits 0-7 of the destination
MSI_ADDRESS_BASE               = 0xFEE00000
MSI_ADDRESS_BASE_MASK          = 0xFFF00000 # bits 20-31
MSI_RESERVED_MASK              = 0xFF << 32
MSI_EXTENDED_DESTINATION_SHIFT = 32         # bits 40-63: its bits 8-31, as with KVM_X2APIC_API_USE_32BIT_IDS

# MSI data (SDM 12.11.2)
MSI_LEVEL_ASSERT               = 1 << 14
MSI_TRIGGER_MODE_SHIFT         = 15

# Redirection entry of an IOAPIC (82093AA 3.2.4)
ENTRY_DESTINATION_MODE_SHIFT   = 11
ENTRY_TRIGGER_MODE_SHIFT       = 15
ENTRY_DESTINATION_SHIFT        = 56         # bits 56-63

# Interrupt command register (SDM 12.6.1, 12.12.9)
ICR_DESTINATION_MODE_SHIFT     = 11
ICR_DELIVERY_STATUS            = 1 << 12    # (RO) not in x2APIC mode
ICR_LEVEL_SHIFT                = 14
ICR_TRIGGER_MODE_SHIFT         = 15
ICR_SHORTHAND_SHIFT            = 18         # bits 18-19
ICR_XAPIC_DESTINATION_SHIFT    = 56         # bits 56-63
ICR_X2APIC_DESTINATION_SHIFT   = 32         # bits 32-63

# fmt: on

_CACHED_MESSAGES = 4096  # bounds what a guest can fill; the least recently used is dropped


class Message(NamedTuple):
    """An interrupt message.

    Attributes:
        vector: 0-255. Without meaning for NMI, SMI, INIT and ExtINT.
        delivery_mode: FIXED to EXTINT, 0-7.
        destination: 32 bits: an APIC id, or a set of APICs in LOGICAL mode; BROADCAST for all.
        destination_mode: PHYSICAL or LOGICAL.
        trigger_mode: EDGE or LEVEL.
        level: 1 to assert. 0 with LEVEL is the INIT level de-assert, and has no other meaning.
        shorthand: NO_SHORTHAND to ALL_EXCLUDING_SELF; `destination` counts only with NO_SHORTHAND.
        redirection_hint: 1 to deliver to the one APIC of lowest priority among the destinations.
    """

    vector: int
    delivery_mode: int = FIXED
    destination: int = 0
    destination_mode: int = PHYSICAL
    trigger_mode: int = EDGE
    level: int = 1
    shorthand: int = NO_SHORTHAND
    redirection_hint: int = 0


def _wide(destination: int) -> int:
    """An 8-bit destination as one of 32 bits."""
    return BROADCAST if destination == XAPIC_BROADCAST else destination


@lru_cache(maxsize=_CACHED_MESSAGES)
def decode_msi(address: int, data: int) -> Message | None:
    """The message that a write of `data` (32 bits) to `address` (64 bits) sends.

    Returns:
        None if `address` belongs to no local APIC: bits 20-31 are not 0xFEE, or bits 32-39 are not 0.

    The level bit is ignored: a device cannot deassert by a message (in KVM a message always asserts).
    """
    if address & MSI_ADDRESS_BASE_MASK != MSI_ADDRESS_BASE or address & MSI_RESERVED_MASK:
        return None
    low = address >> MSI_DESTINATION_SHIFT & 0xFF
    high = address >> MSI_EXTENDED_DESTINATION_SHIFT & 0xFFFFFF00
    return Message(
        vector=data & VECTOR_MASK,
        delivery_mode=data >> DELIVERY_MODE_SHIFT & 7,
        destination=high | low if high else _wide(low),
        destination_mode=address >> MSI_DESTINATION_MODE_SHIFT & 1,
        trigger_mode=data >> MSI_TRIGGER_MODE_SHIFT & 1,
        redirection_hint=1 if address & MSI_REDIRECTION_HINT else 0,
    )


@lru_cache(maxsize=_CACHED_MESSAGES)
def encode_msi(message: Message) -> tuple[int, int]:
    """Address (64 bits) and data (32 bits) of `message`, which has no shorthand.

    A destination above 255 needs KVM's extension (bits 40-63 of the address); BROADCAST becomes 0xFF.
    """
    destination = XAPIC_BROADCAST if message.destination == BROADCAST else message.destination
    address = (
        MSI_ADDRESS_BASE
        | (destination & 0xFFFFFF00) << MSI_EXTENDED_DESTINATION_SHIFT
        | (destination & 0xFF) << MSI_DESTINATION_SHIFT
        | message.destination_mode << MSI_DESTINATION_MODE_SHIFT
        | (MSI_REDIRECTION_HINT if message.redirection_hint else 0)
    )
    data = message.vector | message.delivery_mode << DELIVERY_MODE_SHIFT
    if message.trigger_mode == LEVEL:
        data |= LEVEL << MSI_TRIGGER_MODE_SHIFT | (MSI_LEVEL_ASSERT if message.level else 0)
    return address, data


def decode_redirection_entry(entry: int) -> Message:
    """The message an IOAPIC sends for redirection entry `entry` (64 bits).

    Only fixed and lowest-priority interrupts can be level-triggered: the others are sent as edges even
    if the entry is level-triggered (82093AA 3.2.4, delivery mode).
    """
    mode = entry >> DELIVERY_MODE_SHIFT & 7
    return Message(
        vector=entry & VECTOR_MASK,
        delivery_mode=mode,
        destination=_wide(entry >> ENTRY_DESTINATION_SHIFT & 0xFF),
        destination_mode=entry >> ENTRY_DESTINATION_MODE_SHIFT & 1,
        trigger_mode=entry >> ENTRY_TRIGGER_MODE_SHIFT & 1 if mode <= LOWEST_PRIORITY else EDGE,
    )


@lru_cache(maxsize=_CACHED_MESSAGES)
def decode_icr(icr: int, x2apic: bool) -> Message:
    """The message that a write of the 64-bit interrupt command register sends.

    Processors since the Pentium 4 issue every command but INIT as an asserted edge, whatever the level
    and trigger bits say (SDM 12.6.1).
    """
    mode = icr >> DELIVERY_MODE_SHIFT & 7
    if x2apic:
        destination = icr >> ICR_X2APIC_DESTINATION_SHIFT & 0xFFFFFFFF
    else:
        destination = _wide(icr >> ICR_XAPIC_DESTINATION_SHIFT & 0xFF)
    return Message(
        vector=icr & VECTOR_MASK,
        delivery_mode=mode,
        destination=destination,
        destination_mode=icr >> ICR_DESTINATION_MODE_SHIFT & 1,
        trigger_mode=icr >> ICR_TRIGGER_MODE_SHIFT & 1 if mode == INIT else EDGE,
        level=icr >> ICR_LEVEL_SHIFT & 1 if mode == INIT else 1,
        shorthand=icr >> ICR_SHORTHAND_SHIFT & 3,
    )
