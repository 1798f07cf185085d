"""The interrupt chip whose controllers are all in the Linux kernel (KVM_CREATE_IRQCHIP), for irqchip."""
