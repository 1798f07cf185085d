"""`HookManager`: pluggy's manager of plugins, with the hooks of `hookspecs`."""

from __future__ import annotations

import pluggy
from typing_extensions import override

from irqchip_core import hookspecs
from irqchip_core.errors import PluginError


class HookManager(pluggy.PluginManager):
    """Has all hooks of a plugin or, if one of them could not do its work, none."""

    def __init__(self) -> None:
        super().__init__("irqchip")
        self.add_hookspecs(hookspecs)

    @override
    def register(self, plugin: object, name: str | None = None) -> str | None:
        if self.is_registered(plugin):
            raise PluginError(f"{plugin!r} is registered already", remedy="register it once")
        try:
            key = super().register(plugin, name)
            self.check_pending()  # a misspelt hook would never be called
            self._check(plugin)
        except BaseException:
            if self.is_registered(plugin):
                self.unregister(plugin)
            raise
        return key

    def implementations(self, hook: str, plugin: object = None) -> list[pluggy.HookImpl]:
        """The implementations of `hook`, of one plugin or of all, in the order in which pluggy calls them."""
        found = reversed(getattr(self.hook, hook).get_hookimpls())
        return [implementation for implementation in found if plugin is None or implementation.plugin is plugin]

    def _check(self, plugin: object) -> None:
        """Refuse what pluggy accepts, but is called here by itself or without a needed argument."""
        for caller in self.get_hookcallers(plugin) or ():
            for implementation in self.implementations(caller.name, plugin):
                if implementation.wrapper or implementation.hookwrapper:
                    raise PluginError(f"{caller.name} is a hook wrapper", remedy="mark it with hookimpl alone")
                if caller.name == "irqchip_subcommand" and not implementation.argnames:
                    raise PluginError("irqchip_subcommand lacks its argument", remedy="let it take subparsers")
