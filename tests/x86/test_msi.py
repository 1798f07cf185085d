"""Interrupt messages and their four encodings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irqchip_core.x86.msi import (
    BROADCAST,
    EDGE,
    EXTINT,
    FIXED,
    INIT,
    LEVEL,
    LOGICAL,
    LOWEST_PRIORITY,
    NMI,
    PHYSICAL,
    SELF,
    Message,
    decode_icr,
    decode_msi,
    decode_redirection_entry,
    encode_msi,
)


@pytest.mark.parametrize(
    ("address", "data", "message"),
    [
        (0xFEE00000, 0x45, Message(0x45)),
        (0xFEE05000, 0x45, Message(0x45, destination=5)),
        (0xFEE05004, 0x145, Message(0x45, LOWEST_PRIORITY, 5, LOGICAL)),
        (0xFEE05008, 0x45, Message(0x45, destination=5, redirection_hint=1)),
        (0xFEE05000, 0xC045, Message(0x45, destination=5, trigger_mode=LEVEL)),
        (0xFEE05000, 0x8045, Message(0x45, destination=5, trigger_mode=LEVEL)),  # no message deasserts
        (0xFEE00000, 0x400, Message(0, NMI)),
        (0xFEE00000, 0x700, Message(0, EXTINT)),
        (0xFEEFF000, 0x45, Message(0x45, destination=BROADCAST)),
        (0x01_FEE0_5000, 0x45, None),  # bits 32-39 are none of the destination
        (0x0001_2300_FEE0_5000, 0x45, Message(0x45, destination=0x12305)),
        (0x0000_0100_FEEF_F000, 0x45, Message(0x45, destination=0x1FF)),
        (0x0001_0100_FEE0_5FF0, 0xFFFF0045, Message(0x45, destination=0x10105)),  # ignored bits
        (0xFED00000, 0x45, None),
        (0xFEF00000, 0x45, None),
    ],
)
def test_decode_msi(address: int, data: int, message: Message | None) -> None:
    assert decode_msi(address, data) == message


@given(
    st.builds(
        Message,
        vector=st.integers(0, 255),
        delivery_mode=st.integers(0, 7),
        destination=st.integers(0, 0xFFFFFF) | st.just(BROADCAST),
        destination_mode=st.sampled_from([PHYSICAL, LOGICAL]),
        trigger_mode=st.sampled_from([EDGE, LEVEL]),
        redirection_hint=st.integers(0, 1),
        level=st.just(1),
        shorthand=st.just(0),
    ).filter(lambda message: message.destination != 0xFF)  # 8 bits of it are the broadcast
)
def test_an_encoded_message_decodes_to_itself(message: Message) -> None:
    assert decode_msi(*encode_msi(message)) == message


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (0x10000, Message(0)),  # the mask is not the message's matter
        (0x0500_0000_0000_0045, Message(0x45, destination=5)),
        (0x0500_0000_0000_8945, Message(0x45, LOWEST_PRIORITY, 5, LOGICAL, LEVEL)),
        (0xFF00_0000_0000_0045, Message(0x45, destination=BROADCAST)),
        (0x0000_0000_0000_8445, Message(0x45, NMI, trigger_mode=EDGE)),  # "treated as edge triggered"
        (0x0000_0000_0000_8545, Message(0x45, INIT, trigger_mode=EDGE)),
    ],
)
def test_decode_redirection_entry(entry: int, message: Message) -> None:
    assert decode_redirection_entry(entry) == message


@pytest.mark.parametrize(
    ("icr", "x2apic", "message"),
    [
        (0x0500_0000_0000_4045, False, Message(0x45, destination=5)),
        (0xFF00_0000_0000_4045, False, Message(0x45, destination=BROADCAST)),
        (0x0000_00FF_0000_4045, True, Message(0x45, destination=0xFF)),
        (0x1234_5678_0000_4845, True, Message(0x45, destination=0x12345678, destination_mode=LOGICAL)),
        (0xFFFF_FFFF_0000_4045, True, Message(0x45, destination=BROADCAST)),
        (0x0004_4045, False, Message(0x45, shorthand=SELF)),
        (0x0000_8045, False, Message(0x45)),  # IPIs are asserted edges since the Pentium 4
        (0x0000_8500, False, Message(0, INIT, trigger_mode=LEVEL, level=0)),
        (0x0000_C500, False, Message(0, INIT, trigger_mode=LEVEL)),
        (0x0000_8045, True, Message(0x45, FIXED)),
    ],
)
def test_decode_icr(icr: int, x2apic: bool, message: Message) -> None:
    assert decode_icr(icr, x2apic) == message
