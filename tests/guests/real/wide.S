# Accesses devices of 8 bits by words and double words, and writes what it reads to port 0x510. Ends with a reset.
.include "pc.inc"
.code16
.macro tell                             # AX
        mov     dx, 0x510
        out     dx, ax
.endm
.macro cmos index                       # reports the content of that register
        mov     al, \index
        out     RTC_INDEX, al
        mov     ax, 0
        in      al, RTC_DATA
        tell
.endm
        cli
        cld
        xor     ax, ax
        mov     ds, ax
        mov     es, ax

        mov     ax, 0x7C0E              # RTC: index and data by one word
        out     RTC_INDEX, ax
        cmos    0x0E
        in      ax, RTC_INDEX           # and back
        mov     al, 0
        tell
        mov     eax, 0x5D0FFFFF         # by a double word that starts where no device is
        mov     dx, RTC_INDEX - 2
        out     dx, eax
        cmos    0x0F
        mov     dx, RTC_INDEX - 2
        in      eax, dx
        shr     eax, 16
        mov     al, 0
        tell
        mov     dx, RTC_INDEX           # by a string of words
        mov     si, offset words
        mov     cx, 3
        rep outsw
        cmos    0x10
        cmos    0x11
        cmos    0x12
        mov     dx, RTC_INDEX
        mov     di, 0x1000
        mov     cx, 2
        rep insw
        mov     al, [0x1001]
        mov     ah, [0x1003]
        tell

        mov     dx, COM1 + 6            # UART: MSR cannot be written, SCR can
        mov     ax, 0xA500
        out     dx, ax
        in      ax, dx
        tell
        mov     dx, COM1                # THR and IER
        mov     ax, 0x0241
        out     dx, ax
        inc     dx
        in      ax, dx
        mov     ah, 0
        tell

        mov     ax, 0x5A0B              # PIC: OCW3 and IMR
        out     PIC1_COMMAND, ax
        in      ax, PIC1_COMMAND
        tell
        mov     dx, 0x4D0               # ELCR of both
        mov     ax, 0x0620
        out     dx, ax
        in      ax, dx
        tell
        mov     al, 0x30                # PIT: counter 0's byte, and a control word for counter 1
        out     PIT_CONTROL, al
        mov     dx, 0x42
        mov     ax, 0x7434
        out     dx, ax
        mov     al, 0xE4                # read back the status of counter 1
        out     PIT_CONTROL, al
        in      al, 0x41
        and     ax, 0x3F
        tell

        mov     ax, 0xF6FF              # keyboard controller: a word whose second byte is the command
        mov     dx, KEYBOARD - 1
        out     dx, ax
1:      hlt
        jmp     1b

words:  .byte   0x10, 0x21, 0x11, 0x32, 0x12, 0x43
