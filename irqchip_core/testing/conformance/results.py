"""What the scenarios found, as a table, as JSON, and compared between chips."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from irqchip_core.table import format_table
from irqchip_core.testing.verdict import vectors

Found = dict[str, Any]
"""One scenario on one chip: backend, hypervisor, class, topic, scenario, outcome, reason, interrupts, open, seconds.

The class is the one that a chip's author derived from the kit's, else "".
"""

MANY = 6
"""So many failures that are alike have one line."""
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+(\.\d+)?")
_LIST = re.compile(r"#( was lost and #|, #)*")
OUTCOMES = ("passed", "failed", "not applicable")


class Results:
    """What a run found.

    Args:
        found: One entry for each scenario and chip, in order.
    """

    def __init__(self, found: Iterable[Found]) -> None:
        self.found = list(found)
        self.chips = list(dict.fromkeys(chip_of(one) for one in self.found))

    def differences(self) -> list[Found]:
        """Scenarios that passed on several chips, but with other interrupts than on the first."""
        different: list[Found] = []
        by_scenario: dict[str, list[Found]] = {}
        for one in self._comparable():
            by_scenario.setdefault(one["scenario"], []).append(one)
        for scenario, ones in by_scenario.items():
            if any(one["interrupts"] != ones[0]["interrupts"] for one in ones[1:]):
                seen = {chip_of(one): one["interrupts"] for one in ones}
                different.append({"scenario": scenario, "topic": ones[0]["topic"], "interrupts": seen})
        return different

    def _comparable(self) -> list[Found]:
        """What passed, and can be compared, on all chips."""
        able = [one for one in self.found if one["outcome"] == "passed" and one["interrupts"] is not None]
        counts = Counter(one["scenario"] for one in able)
        return [one for one in able if counts[one["scenario"]] == len(self.chips) > 1]

    def as_json(self) -> Found:
        """Everything."""
        chips = []
        for chip in self.chips:
            mine = [one for one in self.found if chip_of(one) == chip]
            counts = Counter(one["outcome"] for one in mine)
            chips.append(
                {
                    "backend": mine[0]["backend"],
                    "hypervisor": mine[0]["hypervisor"],
                    "class": mine[0]["class"],
                    **{outcome.replace(" ", "_"): counts[outcome] for outcome in OUTCOMES},
                    "scenarios": [
                        {key: value for key, value in one.items() if key not in ("backend", "hypervisor", "class")}
                        for one in mine
                    ],
                }
            )
        return {
            "irqchip-core": importlib.metadata.version("irqchip-core"),
            "chips": chips,
            "compared": len({one["scenario"] for one in self._comparable()}),
            "differences": self.differences(),
        }

    def write(self, path: str) -> None:
        """Write everything to a file, as JSON."""
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self.as_json(), file, indent=1)
            file.write("\n")

    def lines(self) -> list[str]:
        """The table, and what is to be said of it."""
        lines: list[str] = []
        for chip in self.chips:
            mine = [one for one in self.found if chip_of(one) == chip]
            lines += ["", f"{chip}:", *_table(mine).splitlines(), *_reasons(mine)]
        if len(self.chips) > 1:
            lines += ["", *self._comparison()]
        return lines

    def _comparison(self) -> list[str]:
        different = self.differences()
        compared = len({one["scenario"] for one in self._comparable()})
        names = " and ".join(self.chips)
        lines = [f"{names} gave the same interrupts in {compared - len(different)} of {compared} scenarios."]
        for one in different:
            lines.append(f"  {one['scenario']}:")
            lines += [f"    {chip}: {_interrupts(seen)}" for chip, seen in one["interrupts"].items()]
        if alone := self._played_by_some():
            lines.append(f"{alone} scenarios are not applicable to all of them, or leave the interrupts open.")
        return lines

    def _played_by_some(self) -> int:
        return len({one["scenario"] for one in self.found} - {one["scenario"] for one in self._comparable()})


def chip_of(one: Found) -> str:
    """Which chip that was, as the user named it: by a class of his own, or by backend and hypervisor."""
    chip = f"{one['backend']} on {one['hypervisor']}" if one["hypervisor"] else str(one["backend"])
    return f"{chip} ({one['class']})" if one["class"] not in ("", chip) else chip


def _table(found: Sequence[Found]) -> str:
    rows = [("TOPIC", *(outcome.upper() for outcome in OUTCOMES))]
    topics = dict.fromkeys(one["topic"] for one in found)
    rows += [_row(topic, [one for one in found if one["topic"] == topic]) for topic in topics]
    rows.append(_row("all", found))
    return format_table(rows)


def _row(name: str, found: Sequence[Found]) -> tuple[str, str, str, str]:
    passed, failed, not_applicable = (str(sum(one["outcome"] == outcome for one in found)) for outcome in OUTCOMES)
    return name, passed, failed, not_applicable


def _reasons(found: Sequence[Found]) -> list[str]:
    lines: list[str] = []
    reasons: dict[str, list[str]] = {}
    for one in found:
        if one["outcome"] == "not applicable":
            reasons.setdefault(one["reason"], []).append(one["scenario"])
    if reasons:
        lines.append("not applicable:")
    for reason, scenarios in reasons.items():
        lines += [f"  {reason}", f"    {', '.join(scenarios)}"]
    if failed := [one for one in found if one["outcome"] == "failed"]:
        lines += ["failed:", *_failures(failed)]
    return lines


def _failures(failed: Sequence[Found]) -> list[str]:
    """A line for each reason, and one for all reasons that many scenarios give in other words."""
    alike = Counter(_happened(one["reason"]) for one in failed)
    groups: dict[str, list[Found]] = {}
    for one in failed:
        happened = _happened(one["reason"])
        groups.setdefault(happened if alike[happened] >= MANY else one["reason"], []).append(one)
    lines = []
    for ones in groups.values():
        names, first = [one["scenario"] for one in ones], ones[0]["reason"]
        if len(names) < MANY:
            lines.append(f"  {', '.join(names)}: {first}")
        else:
            same = "the same" if all(one["reason"] == first for one in ones) else "the like"
            lines.append(f"  {names[0]}, and {same} in {len(names) - 1} more ({names[1]} to {names[-1]}): {first}")
    return lines


def _happened(reason: str) -> str:
    """What a chip did instead of what the rule demands, whichever vectors, vCPUs and times it was."""
    _, broken, happened = reason.partition(", but ")
    text = _NUMBER.sub("#", happened if broken else reason)
    return _LIST.sub("#", text)


def _interrupts(seen: dict[str, list[int]]) -> str:
    return "; ".join(f"vCPU {cpu} took {vectors(taken)}" for cpu, taken in seen.items()) or "none"
