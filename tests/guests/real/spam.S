# Sends for ever.
.include "pc.inc"
.code16
        mov     dx, COM1
        mov     al, 'x'
1:      out     dx, al
        jmp     1b
