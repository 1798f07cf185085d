# Sleeps for ever with interrupts off.
.include "pc.inc"
.code16
1:      cli
        hlt
        jmp     1b
