"""The interrupt chip whose local APICs are in the Linux kernel, and all else in Python, for irqchip."""
