"""`python -m irqchip_core` is the `irqchip` command."""

import sys

from irqchip_core.cli.main import main

sys.exit(main())
