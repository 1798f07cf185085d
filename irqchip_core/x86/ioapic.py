"""The I/O APIC: interrupt lines in, messages to local APICs out.

Follows Intel's 82093AA data sheet (290566), sections 3 and 3.2, and for version 0x20 the EOI register of
the ICH (I/O controller hub) data sheets. It does no I/O: it returns messages and other effects, and its
owner carries them out.

Left out: the APIC bus and its arbitration (messages never wait, so delivery status reads 0), and the pin
assertion register of the ICH. KVM tracks coalesced ticks of the RTC (pin 8) in its IOAPIC; this one does not, as an
edge-triggered pin of the hardware receives no EOI. `Lapic.accept` returns COALESCED while the previous tick is pending.
"""

from __future__ import annotations

from typing import NamedTuple

from irqchip_core.errors import InvalidArgument
from irqchip_core.routes import IOAPIC_PINS
from irqchip_core.x86.effects import Effects, EntriesChanged, PinEnded, WakeAt
from irqchip_core.x86.msi import DELIVERY_MODE_SHIFT, LOWEST_PRIORITY, VECTOR_MASK, Message, decode_redirection_entry
from irqchip_core.x86.state import (
    IOAPIC_BASE,
    MAXIMUM_PINS,
    NARROW_SELECTOR_PINS,
    STORM_DELAY,
    STORM_EOIS,
    IoapicState,
)
from irqchip_core.x86.state_checks import check_ioapic, check_record

# fmt: off

# Registers in memory (82093AA section 3.1)
IOREGSEL            =     0x00           # (RW) selects what IOWIN shows: bits 0-7, with many pins 0-8
IOWIN               =     0x10           # (RW) 32-bit accesses only
EOIR                =     0x40           # (WO) version 0x20: bits 0-7, vector of the interrupt that has ended

# Registers behind IOWIN (82093AA section 3.2)
IOAPICID            =     0x00           # (RW)
ID_MASK             =         0xF << 24  #      bits 24-27: id
IOAPICVER           =     0x01           # (RO) bits 0-7: version
MAXIMUM_ENTRY_SHIFT =         16         #      bits 16-23: number of the last entry
IOAPICARB           =     0x02           # (RO) arbitration id: equal to the id
IOREDTBL            =     0x10           # (RW) redirection table, two registers an entry, low half first
ENTRY_VECTOR        =         0xFF       #      bits 0-7: vector
ENTRY_DELIVERY_MODE =         7 << 8     #      bits 8-10: delivery mode
ENTRY_LOGICAL       =         1 << 11    #      destination mode
DELIVERY_STATUS     =         1 << 12    # (RO)
POLARITY_LOW        =         1 << 13    #      input pin polarity: only stored, as lines say "asserted"
REMOTE_IRR          =         1 << 14    # (RO) a level-triggered interrupt waits for its EOI
TRIGGER_LEVEL       =         1 << 15    #      trigger mode
MASKED              =         1 << 16    #      no interrupt
ENTRY_DESTINATION   =         0xFF << 56 #      bits 56-63: destination

# fmt: on

MESSAGE_BITS = ENTRY_VECTOR | ENTRY_DELIVERY_MODE | ENTRY_LOGICAL | TRIGGER_LEVEL | ENTRY_DESTINATION
ENTRY_WRITABLE_MASK = MESSAGE_BITS | POLARITY_LOW | MASKED
ENTRY_READ_ONLY = DELIVERY_STATUS | REMOTE_IRR
ENTRY_RESET = MASKED

VERSION_82093AA = 0x11
VERSION_ICH = 0x20
"""From this version on the IOAPIC has an EOI register."""

_ENTRY_CHANGED = [EntriesChanged(1 << pin) for pin in range(MAXIMUM_PINS)]
_PIN_ENDED = [PinEnded(pin) for pin in range(MAXIMUM_PINS)]


class Ioapic:
    """One I/O APIC.

    Args:
        pins: Number of inputs, 24 to 240.
        version: 0x11 or 0x20; 0x20 has an EOI register.

    Attributes:
        wake_at: When to call `expire`, nanoseconds on the owner's clock; None for never.
        resample_lines: Lines, as bits, that the owner drives anew when their interrupt has ended. The EOI takes such a
            line low and yields `PinEnded`; otherwise the pin would interrupt again before the owner can check the line.
        ignored: Number of accesses that have no meaning for the hardware.
        sent: By pin: the entry with which it sent the level-triggered interrupt that waits for its EOI (remote IRR).
        delivered, coalesced: Number of interrupts of each pin.

    Raises:
        InvalidArgument: The number of pins or the version is out of range.
    """

    __slots__ = (
        "_by_vector", "_eois", "_id", "_lines", "_select", "_select_mask", "_sends", "_storming", "coalesced",
        "delivered", "entries", "ignored", "pins", "resample_lines", "sent", "version", "wake_at",
    )  # fmt: skip

    def __init__(self, pins: int = IOAPIC_PINS, version: int = VERSION_ICH) -> None:
        if not IOAPIC_PINS <= pins <= MAXIMUM_PINS:
            raise InvalidArgument(
                f"an IOAPIC cannot have {pins} pins",
                subject="Ioapic",
                argument="pins",
                remedy=f"give {IOAPIC_PINS} to {MAXIMUM_PINS}",
            )
        if version not in (VERSION_82093AA, VERSION_ICH):
            raise InvalidArgument(
                f"{version:#x} is no version", subject="Ioapic", argument="version", remedy="give 0x11 or 0x20"
            )
        self.pins = pins
        self.version = version
        self.resample_lines = 0
        self._select_mask = 0xFF if pins <= NARROW_SELECTOR_PINS else 0x1FF
        self.reset()

    def reset(self) -> None:
        """Return to the state after power-up: every entry masked, every line low, counters 0."""
        self._select = 0
        self._id = 0
        self._lines = 0  # bit n: level of line n, as of the last set_line
        self.entries = [ENTRY_RESET] * self.pins
        self.sent = list(self.entries)
        self._by_vector = [0] * 256  # bit n: the entry of pin n has this vector
        self._by_vector[0] = (1 << self.pins) - 1
        # A message of its own for each pin: `refused` finds the pin by it.
        self._sends: list[tuple[Message]] = [(decode_redirection_entry(ENTRY_RESET),) for _ in range(self.pins)]
        self._eois = [0] * self.pins  # consecutive EOIs with the line still asserted
        self._storming = 0  # bit n: pin n waits for wake_at
        self.wake_at: int | None = None
        self.ignored = 0
        self.delivered = [0] * self.pins
        self.coalesced = [0] * self.pins

    # Guest accesses

    def read(self, offset: int, size: int, now: int) -> int:
        """What the guest reads at `offset` of the page; `size` is 1 to 8 bytes."""
        if offset == IOWIN:
            value = self._read_register(self._select)
        elif offset == IOREGSEL:
            value = self._select
        else:
            self.ignored += 1
            return 0
        return value if size >= 4 else value & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int, now: int) -> Effects:
        """The guest writes `value` of `size` bytes at `offset` of the page."""
        if offset == IOREGSEL:
            self._select = value & self._select_mask
        elif offset == IOWIN and size == 4:
            return self._write_register(self._select, value & 0xFFFFFFFF)
        elif offset == EOIR and self.version >= VERSION_ICH:
            return self.end_of_interrupt(value & VECTOR_MASK, now)
        else:
            self.ignored += 1
        return ()

    def _read_register(self, select: int) -> int:
        if select >= IOREDTBL:
            pin = (select - IOREDTBL) >> 1
            if pin >= self.pins:
                self.ignored += 1
                return 0xFFFFFFFF
            return self.entries[pin] >> 32 if select & 1 else self.entries[pin] & 0xFFFFFFFF
        if select in (IOAPICID, IOAPICARB):
            return self._id
        if select == IOAPICVER:
            return (self.pins - 1) << MAXIMUM_ENTRY_SHIFT | self.version
        self.ignored += 1
        return 0

    def _write_register(self, select: int, value: int) -> Effects:
        if select >= IOREDTBL and (pin := (select - IOREDTBL) >> 1) < self.pins:
            old = self.entries[pin]
            if select & 1:
                return self._set_entry(pin, value << 32 | old & 0xFFFFFFFF)
            return self._set_entry(pin, old & ~0xFFFFFFFF | value)
        if select == IOAPICID:
            self._id = value & ID_MASK
        else:
            self.ignored += 1
        return ()

    def _set_entry(self, pin: int, value: int) -> Effects:
        old = self.entries[pin]
        was_asserted = self._asserted(pin)
        entry = value & ENTRY_WRITABLE_MASK | old & ENTRY_READ_ONLY
        if not entry & TRIGGER_LEVEL:
            # Software without an EOI register ends an interrupt by switching to edge and back.
            entry &= ~REMOTE_IRR
        if entry == old:
            changed: Effects = ()
        else:
            self._store_entry(pin, entry)
            changed = (_ENTRY_CHANGED[pin],)
        if entry & MASKED or not self._asserted(pin):
            return changed
        if _is_level(entry):
            if entry & REMOTE_IRR:
                return changed
            if self.resample_lines >> pin & 1:
                # The level may be outdated: the owner checks the line first, or the interrupt may have no cause.
                self._lower(pin)
                return (*changed, _PIN_ENDED[pin])
            return (*changed, self._fire(pin))
        # An edge on a masked pin is lost, but a change of polarity is an edge of its own.
        return changed if was_asserted else (*changed, self._fire(pin))

    def _store_entry(self, pin: int, entry: int) -> None:
        changed = self.entries[pin] ^ entry
        self.entries[pin] = entry
        if not changed & MESSAGE_BITS:
            return
        if changed & VECTOR_MASK:
            self._by_vector[(entry ^ changed) & VECTOR_MASK] &= ~(1 << pin)
            self._by_vector[entry & VECTOR_MASK] |= 1 << pin
        self._sends[pin] = (decode_redirection_entry(entry),)

    # Lines

    def _asserted(self, pin: int) -> bool:
        return self._lines >> pin & 1 == 1

    def set_line(self, pin: int, level: int) -> Effects:
        """Drive line `pin` to `level`, 0 or 1. Counted in `delivered` or `coalesced`.

        Raises:
            InvalidArgument: There is no such pin.
        """
        if not 0 <= pin < self.pins:
            raise InvalidArgument(
                f"there is no pin {pin}", subject="Ioapic", argument="pin", remedy=f"give 0 to {self.pins - 1}"
            )
        bit = 1 << pin
        entry = self.entries[pin]
        changed = bool(self._lines & bit) != bool(level)
        if changed:
            self._lines ^= bit
        if not level:
            self._storming &= ~bit  # the line is lowered: no storm
            return ()
        if _is_level(entry):
            if entry & MASKED:
                return ()
            if entry & REMOTE_IRR or self._storming & bit:
                self.coalesced[pin] += 1
                return ()
            self.sent[pin] = self.entries[pin] = entry | REMOTE_IRR
        elif not changed or entry & MASKED:
            return ()
        self.delivered[pin] += 1
        return self._sends[pin]

    def _fire(self, pin: int) -> Message:
        if _is_level(self.entries[pin]):
            self.sent[pin] = self.entries[pin] = self.entries[pin] | REMOTE_IRR
        self._storming &= ~(1 << pin)
        self.delivered[pin] += 1
        return self._sends[pin][0]

    def refused(self, message: Message) -> None:
        """No local APIC accepted `message`, which this IOAPIC has just sent: the pin does not wait for an EOI.

        Remote IRR is set only when local APICs accept the level interrupt (82093AA 3.2.4). While the line is
        asserted the message is sent again at the next `set_line`, write of its entry, or EOI of its vector.
        """
        pins = self._by_vector[message.vector]
        while pins:
            pin = pins.bit_length() - 1
            pins ^= 1 << pin
            if self._sends[pin][0] is message:  # not only equal: pins can share a vector
                self.entries[pin] &= ~REMOTE_IRR
                return

    def _lower(self, pin: int) -> None:
        """Take back the assertion of `pin`."""
        self._lines &= ~(1 << pin)

    # End of interrupt

    def end_of_interrupt(self, vector: int, now: int) -> Effects:
        """A local APIC, or the guest by the EOI register, ended level-triggered interrupt `vector`.

        Remote IRR of every level-triggered entry with that vector is cleared, and the pin interrupts again if its
        line is still asserted.
        """
        pins = self._by_vector[vector & VECTOR_MASK]
        if not pins:
            return ()
        effects: list[NamedTuple] = []
        while pins:
            pin = pins.bit_length() - 1
            pins ^= 1 << pin
            entry = self.entries[pin]
            if not entry & REMOTE_IRR and (not _is_level(entry) or self._storming >> pin & 1):
                continue
            self.entries[pin] = entry & ~REMOTE_IRR
            if (entry ^ self.sent[pin]) & ~(REMOTE_IRR | MASKED):
                effects.append(_ENTRY_CHANGED[pin])  # written while the interrupt waited for its end
            if self.resample_lines >> pin & 1 and (entry & REMOTE_IRR or self._asserted(pin)):
                self._lower(pin)
                effects.append(_PIN_ENDED[pin])
            elif entry & MASKED or not self._asserted(pin):
                self._eois[pin] = 0
            elif self._eois[pin] + 1 < STORM_EOIS:
                self._eois[pin] += 1
                effects.append(self._fire(pin))
            else:
                # The guest does not lower the line: the next interrupt is held back, so that other code can run.
                self._eois[pin] = 0
                self._storming |= 1 << pin
                if self.wake_at is None:
                    self.wake_at = now + STORM_DELAY
                    effects.append(WakeAt(self.wake_at))
        return tuple(effects)

    def expire(self, now: int) -> Effects:
        """At `wake_at` or later: send the interrupts that were held back."""
        if self.wake_at is None or now < self.wake_at:
            return ()
        self.wake_at = None
        effects: list[NamedTuple] = []
        pins, self._storming = self._storming, 0
        while pins:
            pin = pins.bit_length() - 1
            pins ^= 1 << pin
            entry = self.entries[pin]
            if _is_level(entry) and not entry & (MASKED | REMOTE_IRR) and self._asserted(pin):
                effects.append(self._fire(pin))
        return tuple(effects)

    # State

    def state(self, now: int) -> IoapicState:
        """All state: the registers, the lines, and the interrupts held back at time `now`."""
        return IoapicState(
            base_address=IOAPIC_BASE,
            ioregsel=self._select,
            ioapicid=self._id,
            current_interrupt_level_bitmap=self._lines,
            redirect_table=list(self.entries),
            successive_eois={pin: count for pin, count in enumerate(self._eois) if count},
            held_back=self._storming,
            held_back_for=None if self.wake_at is None else max(0, self.wake_at - now),
        )

    def set_state(self, state: IoapicState, now: int) -> Effects:
        """Take over `state`. No message is sent before the next `expire`.

        Reserved bits are dropped, and so is remote IRR of an edge-triggered entry. A level-triggered pin that is
        asserted, unmasked and without remote IRR (KVM can save one) interrupts at the next `expire`.

        Raises:
            InvalidArgument: `state` is not the state of an IOAPIC with this number of pins.
        """
        check_ioapic(state, self.pins, subject="Ioapic")
        self._select = state.ioregsel
        self._id = state.ioapicid
        self._lines = state.current_interrupt_level_bitmap
        self._storming = state.held_back
        self.wake_at = None if state.held_back_for is None else now + state.held_back_for
        for pin, entry in enumerate(state.redirect_table):
            self._eois[pin] = state.successive_eois.get(pin, 0)
            entry &= ENTRY_WRITABLE_MASK | REMOTE_IRR
            if not entry & TRIGGER_LEVEL:
                entry &= ~REMOTE_IRR
            self._store_entry(pin, entry)
            if _is_level(entry) and not entry & (MASKED | REMOTE_IRR) and self._asserted(pin):
                self._storming |= 1 << pin
        self.sent = [entry & ~MASKED for entry in self.entries]
        if self._storming and self.wake_at is None:
            self.wake_at = now
        return EntriesChanged((1 << self.pins) - 1), WakeAt(self.wake_at)

    @classmethod
    def from_state(cls, state: IoapicState, now: int, version: int = VERSION_ICH) -> Ioapic:
        """An IOAPIC with the saved `state`. Raises `InvalidArgument` as `set_state` does."""
        check_record(state, IoapicState, subject="Ioapic", argument="state")
        ioapic = cls(len(state.redirect_table), version)
        ioapic.set_state(state, now)
        return ioapic


def _is_level(entry: int) -> bool:
    """Whether an interrupt of this entry waits for its EOI: only a fixed or lowest-priority one does."""
    return entry & TRIGGER_LEVEL != 0 and entry & ENTRY_DELIVERY_MODE <= LOWEST_PRIORITY << DELIVERY_MODE_SHIFT
