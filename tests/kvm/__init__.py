"""Tests of irqchip-kvm."""
