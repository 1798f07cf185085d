"""Interrupt chips for virtual machine monitors: the contract, and the choice of who fulfils it."""
