# Measures one operation, in cycles of the time-stamp counter. Runs under QEMU and under irqchip's VMM alike.
#
# The command line ends with 6 hexadecimal digits: 2 for the row, 4 for how often the operation is performed in one
# pass. The answer, on COM1, is a line for each of PASSES passes with two numbers in hexadecimal, cycles and operations;
# or a line that begins with "-" and says why the row cannot be measured here. Then the guest ends with status 0.
# The order of the rows is that of rows.py.
#
# Registers during a row: r8 local APIC's page, r9 IOAPIC's, r12 cycles, r13 operations left, r14 operations,
# r15 and ebp as in smp.inc. An operation may change eax, ebx, ecx, edx, esi, edi, r10, r11.
.include "pc.inc"
.equ SAVED_INFO, 0x18000                # smp.inc leaves EBX there: the multiboot information
.equ COUNT,     0x18008                 # interrupts taken by vCPU 0
.equ COUNT_1,   0x18010                 # by vCPU 1
.equ MODE,      0x18018                 # what vCPU 1 does
.equ   SLEEP,   0
.equ   EXIT,    1
.equ READY,     0x18020                 # vCPU 1 is there
.equ EXITS_1,   0x18028                 # port reads of vCPU 1
.equ XAPIC,     1
.include "smp.inc"

.equ PASSES,    25
.equ SECOND,    0x80000000              # cycles, roughly
.equ LAPIC,     0xFEE00000              # Intel SDM vol. 3, table 12-1
.equ   VERSION, 0x30
.equ   TPR,     0x80
.equ   LAPIC_EOI, 0xB0
.equ   ICR,     0x300
.equ   ICR_HIGH, 0x310
.equ     ICR_SELF, 1 << 18
.equ   LVT_TIMER, 0x320
.equ   LVT_LINT0, 0x350
.equ   INITIAL, 0x380
.equ   DIVIDE,  0x3E0
.equ IOAPIC,    0xFEC00000              # 82093AA data sheet: IOREGSEL, and IOWIN at 0x10
.equ   ENTRY,   0x10
.equ   MASKED,  1 << 16
.equ   LEVEL,   1 << 15
.equ X2APIC_TPR, 0x808
.equ X2APIC_VERSION, 0x803
.equ X2APIC_SELF, 0x83F
.equ IA32_PAT,  0x277
.equ PIT_0,     0x40
.equ COM1_IER,  COM1 + 1
.equ   IER_THRE, 2                      # set: an interrupt at once, the holding register being empty
.equ COM1_MCR,  COM1 + 4
.equ COM1_SCRATCH, COM1 + 7
.equ COM1_IRQ,  4
.equ PCI_ADDRESS, 0xCF8
.equ PCI_DATA,  0xCFC
.equ EDU_ID,    0x11E81234              # QEMU's teaching device, in slot 4
.equ EDU,       0x80002000
.equ DOORBELL,  0xFEA00000              # where it is put, and where irqchip's benchmark has a device like it
.equ   RAISE,   0x60                    # writing sends the message
.equ TIMER_COUNT, 1000

.equ VECTOR,    0x40                    # ends in the xAPIC's EOI register
.equ VECTOR_X2, 0x41                    # in the x2APIC's
.equ VECTOR_LEVEL, 0x42                 # lowers COM1's line before
.equ VECTOR_1,  0x43                    # counted by vCPU 1
.equ VECTOR_PIC, 0x20 + COM1_IRQ

.macro print text
        lea     rsi, [rip + 77f]
        call    print_string
        jmp     78f
77:     .asciz  "\text"
78:
.endm

# Perform an operation so many times in each pass, and print what it took.
.macro measure operation
        mov     ebx, PASSES
        push    rbx
31:     mov     r13d, r14d
        rdtsc
        shl     rdx, 32
        lea     r12, [rax + rdx]
32:     \operation
        dec     r13d
        jnz     32b
        rdtsc
        shl     rdx, 32
        or      rax, rdx
        sub     rax, r12
        mov     edi, r14d
        call    print_pass
        dec     qword ptr [rsp]
        jnz     31b
        pop     rbx
        ret
.endm

.macro io_entry pin, low                # changes eax
        mov     dword ptr [r9], ENTRY + 2 * \pin + 1
        mov     dword ptr [r9 + 16], 0
        mov     dword ptr [r9], ENTRY + 2 * \pin
        mov     dword ptr [r9 + 16], \low
.endm

.macro out_byte port, value
        mov     edx, \port
        mov     al, \value
        out     dx, al
.endm

# Wait for one more interrupt, at exits or asleep. A KVM that interprets the guest looks for interrupts at exits, and
# otherwise only some hundred times a second: what executes without exits would measure just that.
.macro until_taken
        sti
        mov     edx, COM1_SCRATCH
41:     in      al, dx
        cmp     [COUNT], r11d
        je      41b
        cli
.endm
.macro until_woken
51:     sti
        hlt
        cli
        cmp     [COUNT], r11d
        je      51b
.endm

vcpu_main:
        mov     r8d, LAPIC
        mov     r9d, IOAPIC
        test    ebp, ebp
        jnz     vcpu_1
        out_byte COM1_MCR, 0x0B         # DTR, RTS, OUT2
        out_byte COM1_IER, 0
        pic_setup 0xFF, 0xFF
        mov     dword ptr [r8 + LVT_LINT0], MASKED
        call    arguments
        cmp     r10d, (rows_end - rows) / 8
        jae     absent_row
        call    [rows + r10 * 8]
finish: out_byte COM1_IER, 0
        xor     eax, eax
        out     EXIT_PORT, al
1:      hlt
        jmp     1b

absent_row:
        print   "- there is no such row\n"
        jmp     finish

vcpu_1: mov     dword ptr [READY], 1
1:      sti
        mov     eax, [MODE]
        cmp     eax, EXIT
        je      3f
2:      cli                             # no mode is left between the look and the sleep
        cmp     dword ptr [MODE], SLEEP
        jne     1b
        sti
        hlt
        jmp     1b
3:      mov     edx, COM1_SCRATCH
        in      al, dx
        inc     dword ptr [EXITS_1]
        jmp     1b

# r10 the row, r14 the operations
arguments:
        mov     esi, [SAVED_INFO]
        mov     esi, [rsi + 16]         # cmdline
1:      inc     esi
        cmp     byte ptr [rsi], 0
        jne     1b
        sub     esi, 6
        mov     ecx, 2
        call    hexadecimal
        mov     r10d, edx
        mov     ecx, 4
        call    hexadecimal
        mov     r14d, edx
        ret
hexadecimal:
        xor     edx, edx
1:      movzx   eax, byte ptr [rsi]
        inc     esi
        cmp     al, 'a'
        jb      2f
        sub     al, 'a' - '0' - 10
2:      sub     al, '0'
        shl     edx, 4
        or      edx, eax
        dec     ecx
        jnz     1b
        ret

# rax cycles, edi operations
print_pass:
        push    rdi
        call    print_number
        mov     bl, ' '
        call    print_char
        pop     rax
        call    print_number
        mov     bl, '\n'
        jmp     print_char
print_number:
        mov     ecx, 16
1:      rol     rax, 4
        mov     bl, al
        and     bl, 15
        add     bl, '0'
        cmp     bl, '9'
        jbe     2f
        add     bl, 'a' - '0' - 10
2:      call    print_char
        dec     ecx
        jnz     1b
        ret
print_string:
        mov     bl, [rsi]
        inc     rsi
        test    bl, bl
        jz      1f
        call    print_char
        jmp     print_string
print_char:                             # bl
        push    rax
        mov     edx, COM1 + 5
2:      in      al, dx
        test    al, 1 << 5              # LSR: room for another byte
        jz      2b
        mov     al, bl
        mov     edx, COM1
        out     dx, al
        pop     rax
1:      ret

# --- Rows ---

        .balign 8
rows:   .quad   row_nothing, row_cpuid, row_read_cr8, row_write_cr8, row_rdmsr
        .quad   row_port, row_pic_read, row_pic_write, row_pit_read, row_pit_write
        .quad   row_lapic_read, row_tpr, row_eoi, row_icr
        .quad   row_self, row_self_halted, row_timer, row_deadline
        .quad   row_edge, row_level, row_pic, row_msi, row_entry
        .quad   row_ipi, row_ipi_halted, row_two
        .quad   row_x2_read, row_x2_tpr, row_x2_eoi, row_x2_icr, row_x2_self
rows_end:

.macro op_nothing
        nop
.endm
row_nothing:
        measure op_nothing
.macro op_cpuid
        xor     eax, eax
        cpuid
.endm
row_cpuid:
        measure op_cpuid
.macro op_read_cr8
        mov     rax, cr8
.endm
row_read_cr8:
        measure op_read_cr8
.macro op_write_cr8
        mov     cr8, rsi
.endm
row_write_cr8:
        xor     esi, esi
        measure op_write_cr8
.macro op_msr number
        mov     ecx, \number
        rdmsr
.endm
row_rdmsr:
        measure "op_msr IA32_PAT"

.macro op_port
        mov     edx, COM1_SCRATCH
        in      al, dx
.endm
row_port:
        measure op_port
.macro op_pic_read
        in      al, PIC1_DATA
.endm
row_pic_read:
        measure op_pic_read
.macro op_pic_write
        mov     al, 0xFF
        out     PIC1_DATA, al
.endm
row_pic_write:
        measure op_pic_write
.macro op_pit_read
        in      al, PIT_0
.endm
row_pit_read:
        measure op_pit_read
.macro op_pit_write
        out     PIT_COUNTER_2, al
.endm
row_pit_write:
        mov     al, 0x90                # counter 2, low byte, mode 0
        out     PIT_CONTROL, al
        measure op_pit_write

.macro op_lapic_read
        mov     eax, [r8 + VERSION]
.endm
row_lapic_read:
        measure op_lapic_read
.macro op_tpr
        mov     dword ptr [r8 + TPR], 0
.endm
row_tpr:
        measure op_tpr
.macro op_eoi
        mov     dword ptr [r8 + LAPIC_EOI], 0
.endm
row_eoi:
        measure op_eoi
.macro op_icr
        mov     dword ptr [r8 + ICR], ICR_ASSERT + VECTOR
.endm
row_icr:
        mov     dword ptr [r8 + ICR_HIGH], 14 << 24     # no vCPU
        measure op_icr

.macro op_self
        mov     r11d, [COUNT]
        mov     dword ptr [r8 + ICR], ICR_SELF + ICR_ASSERT + VECTOR
        until_taken
.endm
row_self:
        measure op_self
.macro op_self_halted
        mov     r11d, [COUNT]
        mov     dword ptr [r8 + ICR], ICR_SELF + ICR_ASSERT + VECTOR
        until_woken
.endm
row_self_halted:
        measure op_self_halted

.macro op_timer
        mov     r11d, [COUNT]
        mov     dword ptr [r8 + INITIAL], TIMER_COUNT
        until_woken
.endm
row_timer:
        mov     dword ptr [r8 + DIVIDE], DIVIDE_BY_1
        mov     dword ptr [r8 + LVT_TIMER], VECTOR
        measure op_timer
.macro op_deadline
        mov     r11d, [COUNT]
        rdtsc
        add     eax, TIMER_COUNT
        adc     edx, 0
        mov     ecx, IA32_TSC_DEADLINE
        wrmsr
        until_woken
.endm
row_deadline:
        mov     eax, 1
        cpuid
        bt      ecx, 24
        jnc     1f
        mov     dword ptr [r8 + LVT_TIMER], TIMER_DEADLINE + VECTOR
        measure op_deadline
1:      print   "- CPUID has no TSC deadline\n"
        ret

# COM1 raises its line when the interrupt of its empty holding register is enabled, and lowers it when not.
.macro op_com1 wait
        mov     r11d, [COUNT]
        out_byte COM1_IER, IER_THRE
        \wait
        out_byte COM1_IER, 0
.endm
row_edge:
        io_entry COM1_IRQ, VECTOR
        measure "op_com1 until_woken"
.macro op_level
        mov     r11d, [COUNT]
        out_byte COM1_IER, IER_THRE
        until_woken
.endm
row_level:
        io_entry COM1_IRQ, (LEVEL + VECTOR_LEVEL)
        measure op_level
row_pic:
        mov     dword ptr [r8 + LVT_LINT0], LVT_EXTINT
        mov     al, ~(1 << COM1_IRQ) & 0xFF
        out     PIC1_DATA, al
        measure "op_com1 until_woken"

.macro pci offset
        mov     edx, PCI_ADDRESS
        mov     eax, EDU + \offset
        out     dx, eax
        mov     edx, PCI_DATA
.endm
.macro op_msi
        mov     r11d, [COUNT]
        mov     dword ptr [r10 + RAISE], 1
        until_woken
.endm
row_msi:
        mov     r10d, DOORBELL
        pci     0
        in      eax, dx
        cmp     eax, EDU_ID
        jne     1f
        pci     0x10                    # BAR 0
        mov     eax, DOORBELL
        out     dx, eax
        pci     0x40                    # the capability, 64 bits
        mov     edi, eax
        in      eax, dx
        cmp     al, 5                   # MSI
        jne     2f
        mov     esi, eax
        pci     0x44
        mov     eax, LAPIC
        out     dx, eax
        pci     0x48
        xor     eax, eax
        out     dx, eax
        pci     0x4C
        mov     eax, VECTOR
        out     dx, eax
        pci     0x40
        mov     eax, esi
        or      eax, 1 << 16            # enabled
        out     dx, eax
        pci     4
        mov     eax, 6                  # memory, bus master
        out     dx, eax
1:      measure op_msi
2:      print   "- the device has no MSI where it is expected\n"
        ret

.macro op_entry
        mov     dword ptr [r9 + 16], VECTOR
        mov     dword ptr [r9 + 16], VECTOR + 1
.endm
row_entry:                              # two writes each
        io_entry 10, VECTOR
        measure op_entry

# Returns if there is a second vCPU, and in the row's place if not.
second_vcpu:
        rdtsc
        mov     edi, eax
1:      pause
        cmp     dword ptr [READY], 0
        jne     2f
        rdtsc
        sub     eax, edi
        cmp     eax, SECOND
        jb      1b
        pop     rax
        print   "- there is no second vCPU\n"
        ret
2:      mov     dword ptr [r8 + ICR_HIGH], 1 << 24
        ret
.macro op_ipi
        mov     r11d, [COUNT_1]
        mov     dword ptr [r8 + ICR], ICR_ASSERT + VECTOR_1
61:     cmp     [COUNT_1], r11d
        je      61b
.endm
.macro wake                             # vCPU 1, so that it looks at its new mode
        mov     dword ptr [r8 + ICR], ICR_ASSERT + VECTOR_1
.endm
row_ipi:
        call    second_vcpu
        mov     dword ptr [MODE], EXIT
        wake
        measure op_ipi
row_ipi_halted:
        call    second_vcpu
        measure op_ipi
row_two:                                # as many port reads as both make while this one makes its own
        call    second_vcpu
        mov     dword ptr [MODE], EXIT
        wake
        mov     ebx, PASSES
        push    rbx
1:      cmp     dword ptr [EXITS_1], 0
        je      1b
2:      mov     r13d, r14d
        mov     r11d, [EXITS_1]
        rdtsc
        shl     rdx, 32
        lea     r12, [rax + rdx]
3:      op_port
        dec     r13d
        jnz     3b
        rdtsc
        shl     rdx, 32
        or      rax, rdx
        sub     rax, r12
        mov     edi, [EXITS_1]
        sub     edi, r11d
        add     edi, r14d
        call    print_pass
        dec     qword ptr [rsp]
        jnz     2b
        pop     rbx
        ret

.macro x2apic
        mov     eax, 1
        cpuid
        bt      ecx, 21
        jnc     no_x2apic
        mov     ecx, IA32_APIC_BASE
        rdmsr
        or      eax, APIC_X2APIC
        wrmsr
.endm
no_x2apic:
        print   "- CPUID has no x2APIC\n"
        ret
.macro op_write_msr number, value, high=0
        mov     ecx, \number
        mov     eax, \value
        mov     edx, \high
        wrmsr
.endm
row_x2_read:
        x2apic
        measure "op_msr X2APIC_VERSION"
row_x2_tpr:
        x2apic
        measure "op_write_msr X2APIC_TPR, 0"
row_x2_eoi:
        x2apic
        measure "op_write_msr X2APIC_EOI, 0"
row_x2_icr:
        x2apic
        measure "op_write_msr X2APIC_ICR, ICR_ASSERT + VECTOR, 14"
.macro op_x2_self
        mov     r11d, [COUNT]
        op_write_msr X2APIC_SELF, VECTOR_X2
        until_taken
.endm
row_x2_self:
        x2apic
        measure op_x2_self

# --- Handlers ---

taken:  inc     dword ptr [COUNT]
        mov     dword ptr [r8 + LAPIC_EOI], 0
        iretq
taken_x2:
        push    rax
        push    rcx
        push    rdx
        inc     dword ptr [COUNT]
        end_of_interrupt
        pop     rdx
        pop     rcx
        pop     rax
        iretq
taken_level:
        push    rax
        push    rdx
        inc     dword ptr [COUNT]
        out_byte COM1_IER, 0
        pop     rdx
        pop     rax
        mov     dword ptr [r8 + LAPIC_EOI], 0
        iretq
taken_1:
        inc     dword ptr [COUNT_1]
        mov     dword ptr [r8 + LAPIC_EOI], 0
        iretq
taken_pic:
        push    rax
        inc     dword ptr [COUNT]
        mov     al, EOI
        out     PIC1_COMMAND, al
        pop     rax
        iretq
unexpected:
        print   "- an unexpected interrupt or exception\n"
        jmp     finish

        .balign 16
vector_stubs:
        .set    vector, 0
        .rept   256
        .if     vector == VECTOR
        jmp     taken
        .elseif vector == VECTOR_X2
        jmp     taken_x2
        .elseif vector == VECTOR_LEVEL
        jmp     taken_level
        .elseif vector == VECTOR_1
        jmp     taken_1
        .elseif vector == VECTOR_PIC
        jmp     taken_pic
        .else
        jmp     unexpected
        .endif
        .balign 16
        .set    vector, vector + 1
        .endr
