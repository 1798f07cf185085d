"""The interrupt chip that is all in the Linux kernel (KVM_CREATE_IRQCHIP), for irqchip."""
