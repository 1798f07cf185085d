"""A wrapped chip keeps the contract: every test of the chips once more, through a wrapper."""

from tests.chips.test_contract import *  # noqa: F403
from tests.chips.test_contract import pytestmark as pytestmark
