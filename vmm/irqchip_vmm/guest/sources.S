# How each source is set up, raised and awaited. ebp is the vCPU under test in all of these.

.text
.code64
# --- Rows ---

# new_row: ecx source, ebp vCPU -> rdi a new row, known to that vCPU's handlers; [cpu] that vCPU's structure.
new_row:
        mov     eax, ebp
        shl     rax, 12                         # CPU_SIZE each
        add     rax, offset cpus
        mov     [cpu], rax
        mov     edx, [report_count]
        imul    edi, edx, ROW_SIZE
        add     rdi, offset rows
        inc     edx
        mov     [report_count], edx
        mov     [rax + CPU_ROWS + 8 * rcx], rdi
        mov     [rdi + ROW_VCPU], ebp
        shl     ecx, 5
        .set    at, 0
.rept 3
        mov     rax, [sources + rcx + at]
        mov     [rdi + ROW_NAME + at], rax
        .set    at, at + 8
.endr
        ret

# --- Waiting, the only place where interrupts are on (beside `idle`) ---

# await: rdi row -> until as many were taken as raised, or `gave_up`. HLT follows STI at once: no wake-up is lost.
await:  mov     eax, [rdi + ROW_TAKEN]
        cmp     eax, [rdi + ROW_RAISED]
        jae     1f
        cmp     byte ptr [gave_up], 0
        jne     1f
        sti
        hlt
        cli
        jmp     await
1:      ret

# await_reply: until one more reply came.
await_reply:
        inc     dword ptr [replies]
2:      mov     rax, [reply_row]
        mov     eax, [rax + ROW_TAKEN]
        cmp     eax, [replies]
        jae     1f
        cmp     byte ptr [gave_up], 0
        jne     1f
        sti
        hlt
        cli
        jmp     2b
1:      mov     [replies], eax
        ret

# await_row: rdi row, of this vCPU or another.
await_row:
        cmp     dword ptr [rdi + ROW_VCPU], 0
        je      await
        jmp     await_reply

# watch, unwatch: give up what comes between them after 2 seconds, by the timer of vCPU 0's local APIC.
watch:  mov     dword ptr [r15 + LAPIC_LVT_TIMER], TIMER_ONE_SHOT + VECTOR_BASE + 16 * S_WATCHDOG
        call    timer_frequency
        add     eax, eax
        mov     [r15 + LAPIC_INITIAL], eax
        mov     byte ptr [gave_up], 0
        ret
unwatch:
        mov     dword ptr [r15 + LAPIC_INITIAL], 0
        ret

# pit_watch_on, _off: the same by the PIT, while the timer of vCPU 0 is itself under test.
.equ PIT_WATCH_TICKS, 37                        # of 65536 / 1193182 s each
pit_watch_on:
        lea     rax, [watchdog_row]
        mov     [cpus + CPU_ROWS + 8 * S_PIT], rax
        mov     dword ptr [pit_watch], PIT_WATCH_TICKS
        mov     byte ptr [gave_up], 0
        mov     al, 0xFE                        # line 0 only
        out     PIC1_DATA, al
        xor     ecx, ecx
        jmp     pit_shoot
pit_watch_off:
        mov     dword ptr [pit_watch], 0
        jmp     pic_mask_all

# timer_frequency: eax = Hz of the local APIC timer's clock (CPUID leaf 15H, core crystal clock).
timer_frequency:
        mov     eax, 0x15
        xor     ecx, ecx
        cpuid
        mov     eax, ecx
        ret

# --- 8259 pair and PIT ---

pic_init:
        .macro  port_out port, value
        mov     al, \value
        out     \port, al
        .endm
        port_out PIC1_COMMAND, ICW1
        port_out PIC2_COMMAND, ICW1
        port_out PIC1_DATA, PIC1_VECTOR
        port_out PIC2_DATA, PIC2_VECTOR
        port_out PIC1_DATA, 0b100                # ICW3: the secondary is on line 2
        port_out PIC2_DATA, 2
        port_out PIC1_DATA, ICW4
        port_out PIC2_DATA, ICW4
        mov     dword ptr [r15 + LAPIC_LVT_LINT0], LVT_EXTINT
pic_mask_all:
        port_out PIC1_DATA, 0xFF
        port_out PIC2_DATA, 0xFF
        ret

test_pic_edge:
        xor     ebp, ebp
        mov     ecx, [r14 + GEN_EDGE_GSI]
        mov     eax, 1
        shl     eax, cl
        or      eax, 1 << 2                     # the cascade
        not     eax
        out     PIC1_DATA, al
        mov     al, ah
        out     PIC2_DATA, al
        mov     ecx, S_PIC_EDGE
        call    new_row
        jmp     raise_edges

test_pit:
        mov     al, 0xFE                        # line 0 only
        out     PIC1_DATA, al
        mov     ecx, S_PIT
        call    new_row
        call    watch
        mov     r8d, ROUNDS
1:      inc     dword ptr [rdi + ROW_RAISED]
        mov     ecx, 1193                       # 1 ms
        call    pit_shoot
        call    await
        dec     r8d
        jnz     1b
        jmp     unwatch

# pit_shoot: cx ticks (0 for 65536) from now line 0 rises.
pit_shoot:
        port_out PIT_CONTROL, PIT_ONE_SHOT
        mov     al, cl
        out     PIT_COUNTER0, al
        mov     al, ch
        out     PIT_COUNTER0, al
        ret

# --- IOAPIC ---

# ioapic_write: register ecx takes eax.
ioapic_write:
        mov     esi, IOAPIC_BASE
        mov     [rsi + IOREGSEL], ecx
        mov     [rsi + IOWIN], eax
        ret

# ioapic_route: pin ecx gets the low half eax, physical destination ebp.
ioapic_route:
        push    rax
        lea     ecx, [IOREDTBL + 1 + 2 * rcx]
        mov     eax, ebp
        shl     eax, 24
        call    ioapic_write
        pop     rax
        dec     ecx
        jmp     ioapic_write

ioapic_init:
        mov     ecx, IOREDTBL + 2 * 23
1:      mov     eax, REDIRECT_MASKED
        call    ioapic_write
        sub     ecx, 2
        cmp     ecx, IOREDTBL
        jae     1b
        ret

test_ioapic_edge:
        mov     ecx, [r14 + GEN_EDGE_GSI]
        mov     eax, VECTOR_BASE + 16 * S_IOAPIC_EDGE
        call    ioapic_route
        mov     ecx, S_IOAPIC_EDGE
        call    new_row
        call    raise_edges
        mov     ecx, [r14 + GEN_EDGE_GSI]
        mov     eax, REDIRECT_MASKED
        jmp     ioapic_route

# raise_edges: rdi row. ROUNDS pulses of the edge line.
raise_edges:
        call    watch
        mov     r8d, ROUNDS
1:      inc     dword ptr [rdi + ROW_RAISED]
        mov     dword ptr [r14 + GEN_EDGE_RAISE], 1
        call    await_row
        dec     r8d
        jnz     1b
        jmp     unwatch

test_ioapic_level:
        mov     ecx, [r14 + GEN_LEVEL_GSI]
        mov     eax, REDIRECT_LEVEL + VECTOR_BASE + 16 * S_IOAPIC_LEVEL
        call    ioapic_route
        mov     ecx, S_IOAPIC_LEVEL
        call    new_row
        call    watch
        mov     r8d, ROUNDS
1:      add     dword ptr [rdi + ROW_RAISED], SERVICES
        mov     dword ptr [r14 + GEN_LEVEL_PENDING], SERVICES
        call    await_row
        dec     r8d
        jnz     1b
        call    unwatch
        mov     ecx, [r14 + GEN_LEVEL_GSI]
        mov     eax, REDIRECT_MASKED
        jmp     ioapic_route

# --- Messages ---

test_msi:
        mov     ecx, S_MSI
        call    new_row
        mov     eax, ebp                        # destination in bits 12-19 (SDM vol. 3, 12.11.1)
        shl     eax, 12
        add     eax, LAPIC_BASE
        mov     [r14 + GEN_MSI_ADDRESS], eax
        mov     dword ptr [r14 + GEN_MSI_DATA], VECTOR_BASE + 16 * S_MSI
        call    watch
        mov     r8d, ROUNDS
1:      inc     dword ptr [rdi + ROW_RAISED]
        mov     dword ptr [r14 + GEN_MSI_RAISE], 1
        call    await_row
        dec     r8d
        jnz     1b
        jmp     unwatch

# --- Between processors ---

# send_ipi: ecx the low half of the command, to vCPU ebp.
send_ipi:
        mov     eax, ebp
        shl     eax, 24
send_ipi_to:
        mov     [r15 + LAPIC_ICR_HIGH], eax
        mov     [r15 + LAPIC_ICR_LOW], ecx
1:      test    dword ptr [r15 + LAPIC_ICR_LOW], ICR_PENDING
        jz      2f
        pause
        jmp     1b
2:      ret

# reply: to vCPU 0, counted as raised. Keeps ebp and rdi.
reply:  mov     rax, [reply_row]
        lock inc dword ptr [rax + ROW_RAISED]
        mov     ecx, ICR_ASSERT + VECTOR_BASE + 16 * S_IPI_REPLY
        xor     eax, eax
        jmp     send_ipi_to

test_ipi:
        test    ebp, ebp
        jz      3f
        mov     ecx, S_IPI_WORK
        call    new_row
        mov     ecx, S_IPI
        call    new_row
        call    watch
        mov     r8d, ROUNDS
1:      inc     dword ptr [rdi + ROW_RAISED]
        mov     ecx, ICR_ASSERT + VECTOR_BASE + 16 * S_IPI
        call    send_ipi
        call    await_reply
        dec     r8d
        jnz     1b
        call    unwatch
3:      ret

# --- What a vCPU does with its own local APIC ---

# run_on_vcpu: rbx one of the functions below, ecx its source; on vCPU ebp.
run_on_vcpu:
        call    new_row
        test    ebp, ebp
        jnz     1f
        call    pit_watch_on
        call    rbx
        jmp     pit_watch_off
1:      mov     rax, [cpu]
        mov     [rax + CPU_WORK_ROW], rdi
        mov     [rax + CPU_WORK], rbx
        mov     rdi, [rax + CPU_ROWS + 8 * S_IPI_WORK]
        inc     dword ptr [rdi + ROW_RAISED]
        call    watch
        mov     ecx, ICR_ASSERT + VECTOR_BASE + 16 * S_IPI_WORK
        call    send_ipi
        call    await_reply
        jmp     unwatch

local_one_shot:
        mov     dword ptr [r15 + LAPIC_LVT_TIMER], TIMER_ONE_SHOT + VECTOR_BASE + 16 * S_ONE_SHOT
        mov     r8d, ROUNDS
1:      inc     dword ptr [rdi + ROW_RAISED]
        call    one_millisecond
        mov     [r15 + LAPIC_INITIAL], eax
        call    await
        dec     r8d
        jnz     1b
timer_off:
        mov     dword ptr [r15 + LAPIC_LVT_TIMER], LVT_MASKED
        ret

local_periodic:
        mov     dword ptr [r15 + LAPIC_LVT_TIMER], TIMER_PERIODIC + VECTOR_BASE + 16 * S_PERIODIC
        mov     dword ptr [rdi + ROW_RAISED], ROUNDS
        call    one_millisecond
        mov     [r15 + LAPIC_INITIAL], eax
        call    await
        jmp     timer_off

local_deadline:
        mov     dword ptr [r15 + LAPIC_LVT_TIMER], TIMER_DEADLINE + VECTOR_BASE + 16 * S_DEADLINE
        mfence                                  # the mode is set before the deadline is (SDM vol. 3, 12.5.4.1)
        mov     r8d, ROUNDS
1:      inc     dword ptr [rdi + ROW_RAISED]
        rdtsc
        add     eax, 1 << 20                    # less than a millisecond on any processor of today
        adc     edx, 0
        mov     ecx, IA32_TSC_DEADLINE
        wrmsr
        call    await
        dec     r8d
        jnz     1b
        jmp     timer_off

local_ipi_self:
        mov     r8d, ROUNDS
1:      inc     dword ptr [rdi + ROW_RAISED]
        xor     eax, eax
        mov     ecx, ICR_SELF + ICR_ASSERT + VECTOR_BASE + 16 * S_IPI_SELF
        call    send_ipi_to
        call    await
        dec     r8d
        jnz     1b
        ret

# one_millisecond: eax = counts of the local APIC timer. Keeps rdi.
one_millisecond:
        call    timer_frequency
        xor     edx, edx
        mov     ecx, 1000
        div     ecx
        ret

# has_tsc_deadline: ZF = 0 if the timer has that mode (CPUID leaf 1, ECX bit 24).
has_tsc_deadline:
        mov     eax, 1
        xor     ecx, ecx
        cpuid
        bt      ecx, 24
        sbb     eax, eax
        ret

.bss
        .balign 16
cpu:            .skip 8                         # structure of the vCPU whose row was made last
reply_row:      .skip 8
replies:        .skip 8                         # how many came so far
report:         .skip 4                         # magic
report_count:   .skip 4
                .skip 8
rows:           .skip ROW_SIZE * MAX_ROWS
