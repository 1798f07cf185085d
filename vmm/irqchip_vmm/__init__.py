"""A small virtual machine monitor to run guests on any irqchip: `irqchip run`."""
