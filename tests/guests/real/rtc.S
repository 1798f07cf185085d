# Takes 20 periodic interrupts of the RTC (1024 Hz, IRQ 8), then ends with 20.
.include "pc.inc"
.code16
        cli
        mov     word ptr [0x28 * 4], offset tick
        mov     word ptr [0x28 * 4 + 2], 0
        pic_setup 0xFB, 0xFE
        mov     al, 0x0B                # register B: periodic interrupt, 24 hours
        out     RTC_INDEX, al
        mov     al, 0x42
        out     RTC_DATA, al
1:      sti
        hlt
        cli
        jmp     1b

tick:   mov     al, 0x0C                # register C: reading it lets the next one come
        out     RTC_INDEX, al
        in      al, RTC_DATA
        mov     al, EOI
        out     PIC2_COMMAND, al
        out     PIC1_COMMAND, al
        inc     bl
        cmp     bl, 20
        jb      2f
        mov     al, bl
        out     EXIT_PORT, al
        hlt
2:      iret
