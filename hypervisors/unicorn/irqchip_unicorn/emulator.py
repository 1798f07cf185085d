"""Unicorn's own names, untyped: type checkers find its binding for Python 2 first, which has other signatures."""

from __future__ import annotations

import importlib
from typing import Any

_unicorn: Any = importlib.import_module("unicorn")

UcError: type[Exception] = _unicorn.UcError
open_engine: Any = _unicorn.Uc
