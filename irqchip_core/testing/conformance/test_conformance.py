"""What ``pytest --irqchip NAME --pyargs irqchip_core.testing.conformance`` collects."""

from irqchip_core.testing.conformance import Conformance


class TestConformance(Conformance):
    """The kit on the chips named on the command line."""
