# From the loader to long mode, on the first vCPU and on the others.

# --- Multiboot header, version 1 with the address fields: a flat binary says itself where it belongs ---
.equ MULTIBOOT_MAGIC,   0x1BADB002
.equ MULTIBOOT_FLAGS,   1 << 16                 # the address fields are valid

.text
        .balign 4
        .globl start
header: .long   MULTIBOOT_MAGIC, MULTIBOOT_FLAGS, -(MULTIBOOT_MAGIC + MULTIBOOT_FLAGS)
        .long   header, header, load_end, bss_end, start

# --- The first vCPU: 32-bit protected mode, paging off, flat segments, no stack ---
.code32
start:
        cli
        # Identity-map the first and the fourth GiB with pages of 2 MiB (SDM vol. 3, 5.5): memory, and the devices.
        .equ PRESENT_WRITABLE, 0b11
        .equ CACHE_DISABLE,    1 << 4
        .equ PAGE_2M,          1 << 7
        mov     dword ptr [pml4], offset pdpt + PRESENT_WRITABLE
        mov     dword ptr [pdpt + 0 * 8], offset memory_pages + PRESENT_WRITABLE
        mov     dword ptr [pdpt + 3 * 8], offset device_pages + PRESENT_WRITABLE
        xor     ecx, ecx
1:      mov     eax, ecx
        shl     eax, 21
        or      eax, PAGE_2M + PRESENT_WRITABLE
        mov     [memory_pages + ecx * 8], eax
        add     eax, 0xC0000000 + CACHE_DISABLE
        mov     [device_pages + ecx * 8], eax
        inc     ecx
        cmp     ecx, 512
        jb      1b

        # Long mode: PAE, the tables, EFER.LME, then paging (SDM vol. 3, 11.8.5).
.macro enter_long_mode
        mov     eax, CR4_PAE
        mov     cr4, eax
        mov     eax, offset pml4
        mov     cr3, eax
        mov     ecx, IA32_EFER
        rdmsr
        or      eax, EFER_LME
        wrmsr
        mov     eax, CR0_PE_ET_PG
        mov     cr0, eax
.endm
        lgdt    [gdt_pointer]
        enter_long_mode
        ljmp    CODE64, offset first_vcpu

.code64
first_vcpu:
        lea     r13, [cpus]
        lea     rsp, [r13 + CPU_SIZE]
        call    vcpu_init
        call    idt_init
        jmp     main

# What every vCPU does first in long mode: data segments, IDT, its registers with one meaning, its local APIC.
vcpu_init:
        mov     eax, DATA
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        lidt    [idt_pointer]
        mov     r14d, GENERATOR_BASE
        mov     r15d, LAPIC_BASE
        mov     dword ptr [r15 + LAPIC_SVR], SVR_ENABLE + SPURIOUS_VECTOR
        mov     dword ptr [r15 + LAPIC_DIVIDE], DIVIDE_BY_1
        ret

# --- The other vCPUs: INIT, then a start-up IPI (SDM vol. 3, 10.4.4). One at a time, each answers with a reply ---
start_processors:
        mov     ecx, S_IPI_REPLY                # the row of the replies, taken by vCPU 0
        xor     ebp, ebp
        cmp     dword ptr [r14 + GEN_VCPUS], 1
        je      2f
        call    new_row
        mov     [reply_row], rdi
2:      xor     ebp, ebp
1:      mov     ecx, S_SPURIOUS                 # every vCPU has a row for what it did not expect
        call    new_row
        mov     rax, [cpu]
        mov     [rax + CPU_ID], ebp
        test    ebp, ebp
        jz      3f
        lea     rsi, [startup_code]
        mov     edi, STARTUP_PAGE << 12
        mov     ecx, offset startup_code_end - startup_code
        rep movsb
        mov     ecx, ICR_INIT + ICR_ASSERT
        call    send_ipi
        # No need to wait 10 ms as real processors have to; INIT is seen before the start-up IPI in any case.
        mov     ecx, ICR_STARTUP + STARTUP_PAGE
        call    send_ipi
        call    watch
        call    await_reply
        call    unwatch
3:      inc     ebp
        cmp     ebp, [r14 + GEN_VCPUS]
        jb      1b
        ret

.code16                                         # copied to STARTUP_PAGE: no symbol here but relative to the start
startup_code:
        cli
        mov     ax, cs
        mov     ds, ax
        data32 lgdt [startup_gdt_pointer - startup_code]
        enter_long_mode
        data32 ljmp CODE64, offset other_vcpu
startup_gdt_pointer:
        .word   gdt_end - gdt - 1
        .long   gdt
startup_code_end:

.code64
other_vcpu:
        mov     r13, [cpu]                      # vCPU 0 starts one at a time
        lea     rsp, [r13 + CPU_SIZE]
        call    vcpu_init
        call    reply
idle:   mov     rax, [r13 + CPU_WORK]
        test    rax, rax
        jz      1f
        mov     qword ptr [r13 + CPU_WORK], 0
        mov     rdi, [r13 + CPU_WORK_ROW]
        call    rax
        call    reply
        jmp     idle
1:      sti                                     # takes effect after HLT has begun: no wake-up is lost (SDM vol. 2, STI)
        hlt
        cli
        jmp     idle

        .balign 8
gdt:    .quad   0
        .quad   0x00209A0000000000              # CODE64: long mode, execute/read
        .quad   0x00CF92000000FFFF              # DATA: flat, read/write
gdt_end:
gdt_pointer:
        .word   gdt_end - gdt - 1
        .quad   gdt

.bss
        .balign 4096
pml4:         .skip 4096
pdpt:         .skip 4096
memory_pages: .skip 4096
device_pages: .skip 4096
cpus:         .skip CPU_SIZE * MAX_VCPUS
