"""The same guest under irqchip's VMM and under QEMU, on the same KVM. See `__main__`."""
