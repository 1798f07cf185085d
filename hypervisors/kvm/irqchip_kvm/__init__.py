"""Linux KVM for irqchip: pure Python bindings of /dev/kvm."""
