# Never ends.
.include "pc.inc"
.code16
1:      jmp     1b
