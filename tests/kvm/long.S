# A guest in long mode that takes every interrupt: writes its vector to port TAKEN, ends it at the local APIC and
# goes back to HLT. The test builds page tables and an IDT whose entry v points at stub v.

        TAKEN    = 0x10
        READY    = 0x11
        APIC_EOI = 0xFEE000B0

        .code64
        .org 0
start:  out     %al, $READY
        sti
1:      hlt
        jmp     1b

common: out     %al, $TAKEN
        mov     $APIC_EOI, %ebx
        movl    $0, (%rbx)
        iretq

        .org 0x100
        vector = 0
        .rept 256
        mov     $vector, %al
        jmp     common
        .balign 8
        vector = vector + 1
        .endr
