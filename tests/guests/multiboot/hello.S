# Prints the boot loader's name and the command line on COM1; ends with the number of entries of the memory map, or
# 0x7F if the magic is wrong.
.include "pc.inc"
.text
        multiboot_header
start:  cli
        mov     esp, 0x7C00             # low memory is free
        cmp     eax, 0x2BADB002
        jne     5f
        mov     esi, [ebx + 64]
        call    print
        mov     esi, [ebx + 16]
        call    print
        mov     esi, [ebx + 48]
        mov     ecx, [ebx + 44]
        add     ecx, esi
        xor     eax, eax
1:      add     esi, [esi]
        add     esi, 4
        inc     eax
        cmp     esi, ecx
        jb      1b
        out     EXIT_PORT, al
        hlt
5:      mov     al, 0x7F
        out     EXIT_PORT, al
        hlt

print:  mov     al, [esi]
        inc     esi
        test    al, al
        jz      2f
        call    print_char
        jmp     print
2:      mov     al, '\n'
print_char:
        mov     ah, al
        mov     edx, COM1 + 5
3:      in      al, dx
        test    al, 1 << 5              # LSR: room for another byte
        jz      3b
        mov     al, ah
        mov     edx, COM1
        out     dx, al
        ret
