"""PICs, IOAPIC and PIT in user space, with the lines between them and devices, for chips that have them here."""
