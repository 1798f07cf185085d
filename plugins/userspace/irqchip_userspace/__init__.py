"""The interrupt chip that is all in Python, on any hypervisor, for irqchip."""
