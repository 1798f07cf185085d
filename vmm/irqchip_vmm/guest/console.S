# Printing on COM1, polled, and what the end of the run prints.

.text
.code64
# print: the string that follows the call, up to its 0.
print:  pop     rsi
1:      lodsb
        test    al, al
        jz      2f
        call    print_char
        jmp     1b
2:      jmp     rsi

# print_char: al.
print_char:
        push    rax
        mov     dx, COM1_LSR
1:      in      al, dx
        test    al, LSR_THRE
        jz      1b
        pop     rax
        mov     dx, COM1
        out     dx, al
        ret

# print_number: eax in decimal.
print_number:
        mov     ebx, 10
        push    0                               # ends the digits
1:      xor     edx, edx
        div     ebx
        add     edx, '0'
        push    rdx
        test    eax, eax
        jnz     1b
2:      pop     rax
        test    eax, eax
        jz      3f
        call    print_char
        jmp     2b
3:      ret

# print_rows: name, vCPU, raised, taken and ended of each row.
print_rows:
        lea     rbp, [rows]
        mov     r8d, [report_count]
1:      mov     rsi, rbp
2:      lodsb
        test    al, al
        jz      3f
        call    print_char
        jmp     2b
3:      xor     r9d, r9d
4:      mov     al, ' '
        call    print_char
        mov     eax, [rbp + ROW_VCPU + 4 * r9]
        call    print_number
        inc     r9d
        cmp     r9d, 4
        jb      4b
        mov     al, '\n'
        call    print_char
        add     rbp, ROW_SIZE
        dec     r8d
        jnz     1b
        ret

# rows_agree: al = 0 if in every row as many were taken and ended as were raised, else 1.
rows_agree:
        lea     rsi, [rows]
        mov     ecx, [report_count]
        xor     edx, edx
1:      mov     eax, [rsi + ROW_RAISED]
        cmp     eax, [rsi + ROW_TAKEN]
        jne     2f
        cmp     eax, [rsi + ROW_ENDED]
        je      3f
2:      mov     dl, 1
3:      add     rsi, ROW_SIZE
        dec     ecx
        jnz     1b
        mov     al, dl
        ret
