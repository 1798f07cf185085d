"""The local APIC, a part without I/O. The class is `lapic.Lapic`."""
