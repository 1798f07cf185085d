# Reports that it took 7 interrupts where 8 were raised, on a vCPU that exists; ends with 0.
.include "pc.inc"
.text
        multiboot_header
start:  cli
        mov     dword ptr [GENERATOR + GEN_REPORT], offset report
        xor     eax, eax
        out     EXIT_PORT, al
        hlt
report: .ascii  "IRQR"
        .long   1, 0, 0
        .ascii  "made-up"
        .skip   24 - 7
        .long   0, 8, 7, 7
