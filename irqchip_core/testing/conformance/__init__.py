"""The conformance kit: scenarios that every interrupt chip of x86 must pass.

Run it on an installed chip with ``irqchip conformance NAME``, or in a test run with
``pytest --irqchip NAME --pyargs irqchip_core.testing.conformance``. To run it among your own tests, subclass
`Conformance`. It needs pytest: ``pip install irqchip-core[conformance]``.
"""

from irqchip_core.testing.conformance.arguments import Arguments
from irqchip_core.testing.conformance.base import Scenarios, needs
from irqchip_core.testing.conformance.edge_events import EdgeEvents
from irqchip_core.testing.conformance.handles import Basics, Handles
from irqchip_core.testing.conformance.ipis import Ipis, X2apicIpis
from irqchip_core.testing.conformance.level_events import LevelEvents
from irqchip_core.testing.conformance.local_apic import LocalApic
from irqchip_core.testing.conformance.messages import Messages
from irqchip_core.testing.conformance.modes import Modes
from irqchip_core.testing.conformance.pics import Pics
from irqchip_core.testing.conformance.records import Records
from irqchip_core.testing.conformance.routes import Routes
from irqchip_core.testing.conformance.state import State
from irqchip_core.testing.conformance.timers import ApicTimer, PitTimer, TscDeadlineTimer
from irqchip_core.testing.conformance.tokens import Tokens
from irqchip_core.testing.conformance.vcpus import AtTheSameTime, MpStates, Waiting
from irqchip_core.testing.verdict import Nonconforming, NotApplicable

__all__ = ["Conformance", "Nonconforming", "NotApplicable", "Scenarios", "needs"]


class Conformance(
    Arguments,
    Handles,
    State,
    Records,
    Tokens,
    AtTheSameTime,
    Waiting,
    MpStates,
    Modes,
    PitTimer,
    TscDeadlineTimer,
    ApicTimer,
    X2apicIpis,
    Ipis,
    Messages,
    LocalApic,
    Pics,
    Routes,
    LevelEvents,
    EdgeEvents,
    Basics,
):
    """All scenarios, the last class first: so pytest plays them. A subclass names the chip, and may override or add."""
