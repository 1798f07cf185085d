# Every vector has a stub that says its number; behind them one way in, which finds the source, counts it as taken,
# ends it as its controller requires, and counts it as ended. What no row expects is counted as spurious.

.equ GATE, 0x8E00                               # present, interrupt gate: handlers run with interrupts off

.text
.code64
        .balign 16
vector_stubs:
        .set    vector, 0
.rept 256
        push    vector
        jmp     interrupt
        .balign 16
        .set    vector, vector + 1
.endr

idt_init:
        lea     rdi, [idt]
        lea     rsi, [vector_stubs]             # below 4 GiB, so the high half of each gate stays 0
        mov     ecx, 256
1:      mov     eax, esi
        and     eax, 0xFFFF
        or      eax, CODE64 << 16
        mov     [rdi], eax
        mov     eax, esi
        and     eax, 0xFFFF0000
        or      eax, GATE
        mov     [rdi + 4], eax
        add     rdi, 16
        add     rsi, 16
        dec     ecx
        jnz     1b
        lea     rdi, [vector_source]
        mov     al, S_SPURIOUS
        mov     ecx, 256
        rep stosb
        mov     ecx, S_IOAPIC_EDGE
1:      mov     eax, ecx
        shl     eax, 4
        mov     [vector_source + VECTOR_BASE + eax], cl
        inc     ecx
        cmp     ecx, S_WATCHDOG
        jbe     1b
        mov     byte ptr [vector_source + PIC1_VECTOR], S_PIT
        mov     eax, [r14 + GEN_EDGE_GSI]
        mov     byte ptr [vector_source + PIC1_VECTOR + eax], S_PIC_EDGE
        lea     rax, [watchdog_row]
        mov     [cpus + CPU_ROWS + 8 * S_WATCHDOG], rax
        ret

interrupt:
        push    rax
        push    rcx
        push    rdx
        push    rdi
        mov     eax, [rsp + 32]                 # the vector
        cmp     eax, 32
        jb      exception
        movzx   ecx, byte ptr [vector_source + eax]
        mov     rdi, [r13 + CPU_ROWS + 8 * rcx]
        test    rdi, rdi
        jnz     1f
        mov     ecx, S_SPURIOUS
        mov     rdi, [r13 + CPU_ROWS + 8 * rcx]
1:      inc     dword ptr [rdi + ROW_TAKEN]
        shl     ecx, 5                          # 32 bytes each
        call    [sources + SOURCE_HANDLER + rcx]
        pop     rdi
        pop     rdx
        pop     rcx
        pop     rax
        add     rsp, 8
        iretq

# --- How a source ends its interrupt. rdi: its row; eax: the vector; ecx, edx are free ---
end_local:
        mov     dword ptr [r15 + LAPIC_EOI], 0
        inc     dword ptr [rdi + ROW_ENDED]
        ret

end_pic:                                        # of the secondary, so both
        mov     al, OCW2_EOI
        out     PIC2_COMMAND, al
        out     PIC1_COMMAND, al
        inc     dword ptr [rdi + ROW_ENDED]
        ret

end_remote:                                     # came from outside: vCPU 0 waits for the reply of another vCPU
        call    end_local
        cmp     dword ptr [r13 + CPU_ID], 0
        jne     reply
        ret

end_level:                                      # the reply comes after the last service only
        mov     dword ptr [r14 + GEN_LEVEL_ACK], 1
        cmp     dword ptr [r14 + GEN_LEVEL_PENDING], 0
        je      end_remote
        jmp     end_local

end_pit:
        mov     al, OCW2_EOI
        out     PIC1_COMMAND, al
        inc     dword ptr [rdi + ROW_ENDED]
        cmp     dword ptr [pit_watch], 0        # it is the watchdog: wind it up again, or give up
        je      1f
        xor     ecx, ecx
        call    pit_shoot
        dec     dword ptr [pit_watch]
        jnz     1f
        mov     byte ptr [gave_up], 1
1:      ret

end_periodic:                                   # stop after as many as were requested
        mov     eax, [rdi + ROW_TAKEN]
        cmp     eax, [rdi + ROW_RAISED]
        jb      end_local
        mov     dword ptr [r15 + LAPIC_INITIAL], 0
        .equ    PERIODIC_VECTOR, VECTOR_BASE + 16 * S_PERIODIC
        mov     eax, [r15 + LAPIC_IRR + PERIODIC_VECTOR / 32 * 16]
        bt      eax, PERIODIC_VECTOR & 31       # it expired once more before it was stopped
        adc     dword ptr [rdi + ROW_RAISED], 0
        jmp     end_local

end_watchdog:
        mov     byte ptr [gave_up], 1
        jmp     end_local

end_spurious:
        cmp     eax, SPURIOUS_VECTOR            # sets no bit in service (SDM vol. 3, 12.9)
        je      1f
        cmp     eax, PIC2_VECTOR + 8
        jb      end_pic
        jmp     end_local
1:      ret

# --- The sources: name, handler ---
.equ SOURCE_HANDLER, 24
.macro source name, handler
1:      .ascii  "\name"
        .skip   SOURCE_HANDLER - (. - 1b)
        .quad   \handler
.endm
        .balign 8
sources:
        source  "pic-edge",       end_pic
        source  "pit",            end_pit
        source  "ioapic-edge",    end_remote
        source  "ioapic-level",   end_level
        source  "msi",            end_remote
        source  "timer-one-shot", end_local
        source  "timer-periodic", end_periodic
        source  "timer-deadline", end_local
        source  "ipi-self",       end_local
        source  "ipi",            end_remote
        source  "ipi-work",       end_local
        source  "ipi-reply",      end_local
        source  "watchdog",       end_watchdog
        source  "spurious",       end_spurious

exception:                                      # nothing in this guest should cause one
        call    print
        .asciz  "exception "
        mov     eax, [rsp + 32]
        call    print_number
        call    print
        .asciz  "\n"
        mov     al, 2
        out     EXIT_PORT, al
        hlt

idt_pointer:
        .word   256 * 16 - 1
        .quad   idt

.bss
        .balign 16
idt:            .skip 256 * 16
vector_source:  .skip 256
watchdog_row:   .skip ROW_SIZE                  # not reported
pit_watch:      .skip 4                         # ticks until the PIT, as watchdog, gives up; 0 when it is not one
gave_up:        .skip 4                         # what is awaited did not come in time
