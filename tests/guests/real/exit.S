# Ends with the value DL / 16 = 8 written to the exit port: shows that DL is the first hard disk, as from a BIOS.
.include "pc.inc"
.code16
        mov     al, dl
        shr     al, 4
        out     EXIT_PORT, al
        hlt
