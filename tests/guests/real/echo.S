# Echoes what comes in on COM1, by receive interrupts (IRQ 4 through the 8259), up to 'q'; ends with the number of
# interrupts it took.
.include "pc.inc"
.code16
        cli
        mov     word ptr [0x24 * 4], offset received
        mov     word ptr [0x24 * 4 + 2], 0
        pic_setup 0xEF, 0xFF
        mov     dx, COM1 + 4            # MCR: OUT2 lets interrupts out
        mov     al, 0x0B
        out     dx, al
        mov     dx, COM1 + 1            # IER: received data
        mov     al, 1
        out     dx, al
1:      sti
        hlt
        cli
        jmp     1b

received:
        inc     bl
2:      mov     dx, COM1 + 5            # LSR: data ready
        in      al, dx
        test    al, 1
        jz      3f
        mov     dx, COM1
        in      al, dx
        cmp     al, 'q'
        je      4f
        out     dx, al
        jmp     2b
3:      mov     al, EOI
        out     PIC1_COMMAND, al
        iret
4:      mov     al, bl
        out     EXIT_PORT, al
        hlt
