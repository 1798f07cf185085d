"""The devices of the machine, one module each. They import nothing of chips, vCPUs or hypervisors."""
