# Pulses the processor's reset line through the keyboard controller.
.include "pc.inc"
.code16
        mov     al, 0xFE
        out     KEYBOARD, al
        hlt
