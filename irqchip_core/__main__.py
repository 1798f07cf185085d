"""`python -m irqchip_core` is the `irqchip` command."""

import sys

from irqchip_core.cli import main

sys.exit(main())
