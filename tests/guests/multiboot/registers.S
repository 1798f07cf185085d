# Reads and writes the generator's page, and memory far from anything, in sizes 1, 2 and 4 with all kinds of values;
# requests a report of the last output; ends with 6.
.include "pc.inc"
.text
        multiboot_header
start:  cli
        mov     ebx, 0x12345678
        mov     edi, GENERATOR
1:      imul    ebx, ebx, 1664525
        add     ebx, 1013904223
        mov     [edi], ebx
        mov     [edi], bx
        mov     [edi], bl
        mov     eax, [edi]
        mov     ax, [edi]
        mov     al, [edi]
        add     edi, 2
        cmp     edi, GENERATOR + 0x100
        jb      1b
        mov     edi, 0xD0000000
        mov     [edi], ebx
        mov     eax, [edi]
        inc     eax                     # no device there: all ones
        jnz     2f
        mov     dword ptr [GENERATOR + GEN_REPORT], 0xFFFFFFF0
        mov     al, 6
        out     EXIT_PORT, al
        hlt
2:      mov     al, 1
        out     EXIT_PORT, al
        hlt
