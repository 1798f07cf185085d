"""The interrupt chip with local APICs in the Linux kernel and all other controllers in Python, for irqchip."""
