"""Observers of a chip: notified when it is created, events are registered or unregistered, and routes change.

An observer implements those of the hooks ``irqchip_created``, ``irqchip_event_registered``,
``irqchip_event_unregistered`` and ``irqchip_routes_changed`` that it needs, each with the arguments that it needs::

    class Registrations:
        @hookimpl
        def irqchip_event_registered(self, gsi, source):
            print(f"{source.device_name} drives GSI {gsi}")

    chip.observers.add(Registrations())

Plugins are observers of every chip that `create_irqchip` makes. Single interrupts are not reported.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

import pluggy
from typing_extensions import ParamSpec

from irqchip_core.errors import InvalidArgument, PluginError, TimedOut
from irqchip_core.hook_manager import HookManager

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")


class ChipObservers:
    """The observers of one chip, which all its clones share.

    Each is called by itself, the last one added first, on the thread that made the change. One that raises is logged
    and does not disturb the others or the chip. Plugins are called with a time limit, and no more after one of their
    hooks did not end in time.
    """

    def __init__(self) -> None:
        self._manager = HookManager()
        self._run: dict[str, Callable[..., object]] = {}  # by name of the plugin
        self._lock = threading.Lock()  # of changes to the manager

    def add(self, observer: object) -> None:
        """Notify `observer` from now on.

        Raises:
            InvalidArgument: A hook of it is misspelt, names an argument that does not exist, or is a hook wrapper; or
                `observer` was added before.
        """
        with self._lock:
            try:
                self._manager.register(observer, str(id(observer)))
            except (pluggy.PluginValidationError, PluginError) as error:
                raise InvalidArgument(str(error), subject="ChipObservers", argument="observer") from error

    def add_plugins(self, plugins: HookManager, run: Callable[[str, Callable[[], object]], object]) -> None:
        """Notify all plugins of `plugins` from now on.

        Args:
            plugins: The plugins.
            run: Calls a hook (the second argument), which the first one describes; raises `TimedOut` if that does
                not end in time.
        """
        with self._lock:
            for name, plugin in plugins.list_name_plugin():
                self._manager.register(plugin, name)
                self._run[name] = run

    def remove(self, observer: object) -> None:
        """Take `observer` out; harmless if it is not there."""
        with self._lock:
            if self._manager.is_registered(observer):
                self._manager.unregister(observer)

    def notify(self, hook: Callable[_P, None], *args: _P.args, **arguments: _P.kwargs) -> None:
        """Call `hook` of all observers; chips do it after each change, with no lock held.

        Args:
            hook: A function of `hookspecs`.
            args: None: all arguments are given by name.
            arguments: Those of `hook`.
        """
        assert not args
        for implementation in self._manager.implementations(hook.__name__):
            call = partial(implementation.function, *(arguments[name] for name in implementation.argnames))
            run = self._run.get(implementation.plugin_name)
            subject = f"plugin {implementation.plugin_name}" if run else f"observer {implementation.plugin!r}"
            try:
                if run is None:
                    call()
                else:
                    run(f"{hook.__name__} of {subject}", call)
            except (Exception, SystemExit) as error:
                if run is not None and isinstance(error, TimedOut):
                    self.remove(implementation.plugin)
                _log.exception("%s failed in %s", subject, hook.__name__)
