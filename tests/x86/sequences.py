"""Sequences of actions on one of our parts and on an oracle's, which must agree.

An action's arguments are drawn from plain sequences, so that one declaration serves two drivers: hypothesis, which
is slow and shrinks well, and ``tests.fuzz.beside``, which is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

F = TypeVar("F", bound=Callable[..., None])

CHOICES = "choices"
"""Attribute of an action: from what each of its arguments is drawn."""


def strategy(choices: Sequence[Any]) -> st.SearchStrategy[Any]:
    if isinstance(choices, range):  # which may be too long to be listed
        return st.integers(0, len(choices) - 1).map(choices.__getitem__)
    return st.sampled_from(choices)


def _declared(kind: Callable[..., Any], choices: Mapping[str, Sequence[Any]]) -> Callable[[F], F]:
    def declare(function: F) -> F:
        made: F = kind(**{name: strategy(each) for name, each in choices.items()})(function)
        setattr(made, CHOICES, choices)
        return made

    return declare


def beginning(**choices: Sequence[Any]) -> Callable[[F], F]:
    """The method, of any name, that puts both into the same state."""
    return _declared(initialize, choices)


def action(**choices: Sequence[Any]) -> Callable[[F], F]:
    """A method that does the same to both. Where it makes no sense it does nothing."""
    return _declared(rule, choices)


class SequenceMachine(RuleBasedStateMachine):
    """Has one `beginning`, named start, and actions."""

    start: Callable[..., None]

    def agree(self) -> None:
        """Assert that all that can be read agrees."""
        raise NotImplementedError

    @invariant()
    def after_each_action(self) -> None:
        self.agree()
