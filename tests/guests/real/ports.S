# Reads and writes every port up to 0x5FF in all three sizes with all kinds of values, but for the two that end the
# run; then ends with 5.
.include "pc.inc"
.code16
        cli
        xor     dx, dx
        mov     ebx, 0x12345678
1:      cmp     dx, EXIT_PORT
        je      2f
        mov     eax, ebx
        imul    ebx, ebx, 1664525
        add     ebx, 1013904223
        cmp     dx, KEYBOARD - 3        # a wide access from here on would reach the command port with a part of it
        jb      3f
        cmp     dx, KEYBOARD
        jbe     4f
        cmp     dx, EXIT_PORT - 3       # and the exit port likewise
        jb      3f
        cmp     dx, EXIT_PORT
        jb      4f
3:      out     dx, eax
        out     dx, ax
        out     dx, al
4:      in      eax, dx
        in      ax, dx
        in      al, dx
2:      inc     dx
        cmp     dx, 0x600
        jb      1b
        mov     al, 5
        out     EXIT_PORT, al
        hlt
