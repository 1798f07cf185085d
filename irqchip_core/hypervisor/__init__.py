"""What a chip and a VMM need of a hypervisor: protocols, exits, registers."""
