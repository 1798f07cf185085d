# Does to the interrupt controllers what no sane guest does: random values to random registers of the 8259s, the IOAPIC,
# the local APIC (page and MSRs), the PIT and the interrupt generator; IPIs and messages to any id, present or absent. It
# never ends an interrupt but by chance. Another vCPU, the victim, is well-behaved and reports each tick of its
# timer to the host. The host gives each vCPU its part: see its page.
#
# With SPARE set no INIT and no SMI reaches the victim, or the attacker himself; all else may.
.include "pc.inc"
.include "smp.inc"

.equ TICK_PORT,  0x510
.equ PARAMETERS, 0x10000
.equ   SPARE,    PARAMETERS + 0x00
.equ   READY,    PARAMETERS + 0x04      # the victim has interrupts on
.equ TAKEN,      0x000                  # in each vCPU's page: by vector
.equ SEED,       0x400                  #   of the attacker; 64 bits, not 0
.equ HOSTILE,    0x408                  #   1: attacker, 0: victim
.equ ATTACKS,    0x40C                  #   how many so far

.equ TICK_VECTOR, 0xFF                  # above all others
.equ VICTIM_SPURIOUS, 0xEF
.equ TICK_COUNT, 1000000                # 1 ms at 1 GHz
.equ BUSY,       100
.equ IOAPIC,     0xFEC00000
.equ LAPIC,      0xFEE00000
.equ ABSENT_ID,  0xA0
.equ ICR_LOGICAL_AND_SHORTHAND, 1 << 11 | 3 << 18
.equ DELIVERY_MODE, 7 << 8              # of ICR, LVT, redirection entries and messages
.equ   ICR_SMI,  2 << 8

vcpu_main:
        cmp     dword ptr [r15 + HOSTILE], 0
        jne     attacker

# --- The victim. Handlers change eax, ecx, edx; r8 is the loop's ---
        write_msr X2APIC_SIVR, SIVR_ENABLE + VICTIM_SPURIOUS
        write_msr X2APIC_TIMER, TICK_VECTOR
        write_msr X2APIC_INITIAL, TICK_COUNT
        mov     dword ptr [READY], 1
idle:   sti
        mov     r8d, BUSY
1:      dec     r8d
        jnz     1b
        hlt
        jmp     idle

victim_tick:
        mov     dx, TICK_PORT
        out     dx, al
        end_of_interrupt
        write_msr X2APIC_INITIAL, TICK_COUNT
        iretq

victim_other:
        end_of_interrupt
        iretq

# --- The attacker. r9, r10: IOAPIC and generator; r12: where to go on after an exception; r14: random state. Attacks
# change rax, rcx, rdx, rdi ---
attacker:
        mov     r14, [r15 + SEED]
        mov     r9d, IOAPIC
        mov     r10d, GENERATOR
1:      pause
        cmp     dword ptr [READY], 0
        je      1b
again:  lea     r12, [again]
        lea     rsp, [r15 + STACK_TOP]
        mov     [r15 + SEED], r14
        inc     dword ptr [r15 + ATTACKS]
        sti
        call    random
        and     eax, 31
        jmp     [attacks + rax * 8]

        .balign 8
attacks:
        .quad   write_msr_of_apic, write_msr_of_apic, write_msr_of_apic, write_msr_of_apic
        .quad   read_msr_of_apic, read_msr_of_apic, write_base, write_cr8
        .quad   write_page, write_page, write_page, read_page
        .quad   write_ioapic, write_ioapic, write_ioapic, write_ioapic_anywhere
        .quad   read_ioapic, pic_out, pic_out, pic_in
        .quad   pit_out, pit_out, pit_in, write_deadline
        .quad   send_ipi, send_ipi, send_ipi, send_message
        .quad   raise, raise, end_some, rest

random: mov     rax, r14
        shl     rax, 13
        xor     r14, rax
        mov     rax, r14
        shr     rax, 7
        xor     r14, rax
        mov     rax, r14
        shl     rax, 17
        xor     r14, rax
        mov     rax, r14
        ret

# A value with few or many bits set: registers refuse most that have all kinds.
value:  call    random
        mov     rcx, rax
        shr     rcx, 60
        and     ecx, 3
        jz      3f
        dec     ecx
        jz      1f
        dec     ecx
        jz      2f
        ret                             # 64 bits
1:      and     eax, 0xFFFF
        jmp     defuse
2:      mov     eax, eax                # 32 bits
        jmp     defuse
3:      and     eax, 0x7FF
# Takes INIT and SMI out of what may be a command, redirection entry or message in eax. A start-up leads to the
# trampoline: the vCPU attacks again.
defuse: mov     ecx, eax
        and     ecx, DELIVERY_MODE
        call    is_allowed
        jz      defuse_startup
        and     rax, ~DELIVERY_MODE
        ret
defuse_startup:
        cmp     ecx, ICR_STARTUP
        jne     1f
        mov     al, TRAMPOLINE >> 12
1:      ret

# Whether delivery mode ecx may go to any vCPU (ZF): not INIT and SMI; but if no vCPU is to be spared, one in eight.
is_allowed:
        cmp     ecx, ICR_INIT
        je      1f
        cmp     ecx, ICR_SMI
        je      1f
        cmp     ecx, ecx
        ret
1:      cmp     dword ptr [SPARE], 0
        jne     2f
        test    r14d, 7
2:      ret

write_msr_of_apic:
        call    value
        call    defuse
        mov     rdx, rax
        shr     rdx, 32
        mov     rdi, rax
        call    random
        and     eax, 0xFF
        test    eax, 0xC0               # most of those that exist are below 0x840
        jnp     1f
        and     eax, 0x3F
1:      lea     ecx, [rax + 0x800]
        mov     eax, edi
        wrmsr
        jmp     again

read_msr_of_apic:
        call    random
        and     eax, 0xFF
        lea     ecx, [rax + 0x800]
        rdmsr
        jmp     again

write_base:                             # disabled, xAPIC, x2APIC, impossible; here or elsewhere
        call    random
        mov     edi, eax
        and     eax, 0xC00
        or      eax, LAPIC
        test    edi, 0xF0
        jnz     1f
        xor     eax, 0x10000
1:      xor     edx, edx
        mov     ecx, IA32_APIC_BASE
        wrmsr
        jmp     again

write_cr8:
        call    random
        and     eax, 0xF
        mov     cr8, rax
        jmp     again

write_page:
        call    value
        call    defuse
        mov     rdx, rax
        call    random
        mov     edi, eax
        and     edi, 0x3F0
        test    eax, 0x7000
        jnz     1f
        mov     edi, eax
        and     edi, 0xFF7              # anywhere in the page
1:      add     edi, LAPIC
        call    write_of_some_size
        jmp     again

write_of_some_size:                     # rdx at rdi; mostly 4 bytes
        call    random
        test    eax, 0xF00
        jnz     4f
        test    eax, 1
        jnz     1f
        test    eax, 2
        jnz     2f
        mov     [rdi], rdx
        ret
1:      mov     [rdi], dl
        ret
2:      mov     [rdi], dx
        ret
4:      mov     [rdi], edx
        ret

read_page:
        call    random
        mov     edi, eax
        and     edi, 0xFFF
        add     edi, LAPIC
        test    eax, 0xF000
        jnz     1f
        mov     al, [rdi]
        jmp     again
1:      and     edi, ~0xF
        mov     eax, [rdi]
        jmp     again

write_ioapic:
        call    random
        and     eax, 0x3F               # all entries, and a few beyond
        mov     [r9], eax
        call    value
        call    defuse
        mov     [r9 + 0x10], eax
        jmp     again

write_ioapic_anywhere:
        call    value
        call    defuse
        mov     rdx, rax
        call    random
        mov     edi, eax
        and     edi, 0xF8
        add     edi, IOAPIC
        call    write_of_some_size
        jmp     again

read_ioapic:
        call    random
        mov     [r9], al
        mov     eax, [r9 + 0x10]
        jmp     again

pic_port:                               # edx
        call    random
        and     eax, 7
        movzx   edx, word ptr [pic_ports + rax * 2]
        ret
pic_ports:
        .word   0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x20, 0xA0

pic_out:
        call    pic_port
        call    random
        out     dx, al
        test    eax, 0x7000000
        jnz     again
        out     dx, eax
        jmp     again

pic_in: call    pic_port
        in      al, dx
        in      ax, dx
        jmp     again

pit_port:                               # edx: 0x40-0x47, 0x61
        call    random
        mov     edx, eax
        and     edx, 7
        add     edx, 0x40
        test    eax, 0xF0
        jnz     1f
        mov     edx, 0x61
1:      ret

pit_out:
        call    pit_port
        call    random
        test    eax, 0x3000             # often short periods
        jnz     1f
        and     eax, 3
1:      out     dx, al
        test    eax, 0x7000000
        jnz     again
        out     dx, ax
        jmp     again

pit_in: call    pit_port
        in      al, dx
        in      eax, dx
        jmp     again

write_deadline:
        call    random
        mov     edi, eax
        rdtsc
        test    edi, 0xF000000
        jz      1f
        and     edi, 0xFFFFF            # soon
1:      add     eax, edi
        adc     edx, 0
        mov     ecx, IA32_TSC_DEADLINE
        wrmsr
        jmp     again

send_ipi:
        call    random
        mov     edx, eax
        test    eax, 0x80000000
        jz      1f
        and     edx, 3                  # an id that is present, more likely
1:      call    random
        and     eax, 0xCCFFF            # no reserved bits
        mov     ecx, eax
        and     ecx, DELIVERY_MODE
        call    is_allowed
        jz      2f
        and     eax, ~ICR_LOGICAL_AND_SHORTHAND
        mov     edx, ABSENT_ID
2:      call    defuse_startup
        mov     ecx, X2APIC_ICR
        wrmsr
        jmp     again

send_message:
        call    value
        call    defuse
        mov     [r10 + 0x38], eax # data
        call    random
        mov     edi, eax
        test    eax, 0x700
        jz      1f
        and     edi, 0x000FFFFF
        or      edi, LAPIC
1:      mov     [r10 + 0x30], edi # address
        shr     rax, 32
        test    eax, 0x7
        jz      2f
        xor     eax, eax
2:      mov     [r10 + 0x34], eax
        mov     [r10 + 0x3C], eax
        jmp     again

raise:                                  # 0x20 edge, 0x24 level, 0x28 level acknowledged, 0x3C the message
        call    random
        mov     edi, eax
        and     edi, 3
        movzx   edi, byte ptr [raised + rdi]
        shr     rax, 48
        mov     [r10 + rdi], eax
        jmp     again
raised: .byte   0x20, 0x24, 0x28, 0x3C

end_some:
        end_of_interrupt
        jmp     again

rest:   call    random
        test    eax, 0xFF
        jnz     again
        cmp     dword ptr [SPARE], 0    # with all masked the vCPU would halt for ever
        jne     again
        hlt
        jmp     again

# --- Handlers ---
skip:                                   # an exception, or an interrupt that looks so: leave out what was under way
        cmp     dword ptr [r15 + HOSTILE], 0
        je      victim_other            # nothing of it is exceptional: an interrupt with such a vector
        lea     rsp, [r15 + STACK_TOP]
        mov     eax, DATA
        push    rax
        lea     rax, [r15 + STACK_TOP]
        push    rax
        push    0x202                   # interrupts on
        push    CODE64
        push    r12
        iretq

other:  cmp     dword ptr [r15 + HOSTILE], 0
        je      victim_other
nmi:    iretq

tick:   cmp     dword ptr [r15 + HOSTILE], 0
        je      victim_tick
        iretq

.macro stub handler
        inc     dword ptr [r15 + TAKEN + 4 * vector]
        jmp     \handler
        .balign 16
        .set    vector, vector + 1
.endm
        .balign 16
        .set    vector, 0
vector_stubs:
        .rept   2
        stub    skip
        .endr
        stub    nmi
        .rept   29
        stub    skip
        .endr
        .rept   TICK_VECTOR - 32
        stub    other
        .endr
        stub    tick
