# Times 32768 pulses of PIT counter 2 by its output, as kernels do that calibrate their clocks. Writes to the STOPWATCH what
# it reads at port 0x61: with the gate off, with it on, when the count is written, and when the output has risen.
.include "pc.inc"
.code16
.equ STOPWATCH, 0x510
        cli
        mov     bx, STOPWATCH
        mov     al, 0                   # gate and speaker off
        call    set
        mov     al, 1                   # gate on
        call    set
        mov     al, 0xB0                # counter 2: both bytes, mode 0
        out     PIT_CONTROL, al
        mov     al, 0x00
        out     PIT_COUNTER_2, al
        in      al, SYSTEM_CONTROL
        mov     dx, bx
        out     dx, al
        mov     al, 0x80
        out     PIT_COUNTER_2, al
1:      in      al, SYSTEM_CONTROL
        test    al, 0x20
        jz      1b
        out     dx, al
        mov     al, 2                   # gate off, speaker on
        call    set
        mov     al, 1
        out     EXIT_PORT, al
        hlt

set:    out     SYSTEM_CONTROL, al
        in      al, SYSTEM_CONTROL
        mov     dx, bx
        out     dx, al
        ret
