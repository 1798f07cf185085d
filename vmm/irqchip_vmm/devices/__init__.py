"""The devices of the machine, one module each. They know nothing of chips, vCPUs or hypervisors."""
