"""The `irqchip` command."""
