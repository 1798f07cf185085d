# The guest of doorbell.py: rings three times, each time waits for the interrupt (IRQ 5), ends with the number it took.
.include "pc.inc"
.equ DOORBELL, 0x510
.code16
        cli
        mov     word ptr [0x25 * 4], offset rung
        mov     word ptr [0x25 * 4 + 2], 0
        pic_setup 0xDF, 0xFF
        mov     cx, 3
1:      mov     dx, DOORBELL
        out     dx, al
        sti
        hlt
        cli
        loop    1b
        mov     al, bl
        out     EXIT_PORT, al
        hlt

rung:   inc     bl
        mov     al, EOI
        out     PIC1_COMMAND, al
        iret
