"""Calls the hooks of all plugins at each event in a chip's life: created, registrations, routes."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

from irqchip_core.errors import TimedOut
from irqchip_core.loading import run_with_timeout, time_limit
from irqchip_core.observers import ChipObserver

if TYPE_CHECKING:
    from irqchip_core.chip import IrqChip
    from irqchip_core.events import IrqEventIndex, IrqEventSource
    from irqchip_core.routes import IrqRoute

_log = logging.getLogger(__name__)


class HookCaller(ChipObserver):
    """Passes a chip's life on to the hooks of all plugins."""

    def __init__(self, manager: pluggy.PluginManager) -> None:
        self._manager = manager
        self._seconds = time_limit()
        self._given_up: set[str] = set()

    def _call(self, hook: str, **arguments: object) -> None:
        """Call each plugin by itself: one that raises or does not end in time is logged, and the others go on.

        After one that does not end, this chip does not call its plugin again.
        """
        for implementation in reversed(getattr(self._manager.hook, hook).get_hookimpls()):
            plugin = implementation.plugin_name
            if plugin in self._given_up:
                continue
            values = [arguments[name] for name in implementation.argnames]
            try:
                what = f"{hook} of plugin {plugin}"
                run_with_timeout(self._seconds, what, functools.partial(implementation.function, *values))
            except (Exception, SystemExit) as error:
                if isinstance(error, TimedOut):
                    self._given_up.add(plugin)
                _log.exception("plugin %s failed in %s", plugin, hook)

    def chip_created(self, chip: IrqChip) -> None:
        self._call("irqchip_created", chip=chip)

    def event_registered(self, chip: IrqChip, gsi: int, source: IrqEventSource, index: IrqEventIndex | None) -> None:
        self._call("irqchip_event_registered", chip=chip, gsi=gsi, source=source, index=index)

    def event_unregistered(self, chip: IrqChip, gsi: int) -> None:
        self._call("irqchip_event_unregistered", chip=chip, gsi=gsi)

    def routes_changed(self, chip: IrqChip, routes: Iterable[IrqRoute]) -> None:
        self._call("irqchip_routes_changed", chip=chip, routes=routes)
