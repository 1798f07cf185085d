# An exception with an interrupt table that has room for none.
.include "pc.inc"
.text
        multiboot_header
start:  cli
        lidt    [empty]
        ud2
1:      jmp     1b
empty:  .word   0
        .long   0
