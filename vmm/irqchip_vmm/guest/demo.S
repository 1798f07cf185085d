# The demonstration guest of `irqchip run`: takes interrupts from every source a PC has, one at a time, on every
# vCPU, counts them, prints and reports the counts, and leaves through the exit port (0 if all counts agree).
#
# Entered by a multiboot v1 loader. All code runs in one address space with interrupts off, except inside `await`.
# Registers with one meaning everywhere:
#   r13  this vCPU's structure (CPU_*)     r14  GENERATOR_BASE     r15  LAPIC_BASE
# All others are scratch in every function, and kept by interrupt handlers.

.intel_syntax noprefix
.include "constants.inc"
.include "boot.S"
.include "interrupts.S"
.include "sources.S"
.include "console.S"

.text
.code64
main:
        call    print
        .asciz  "irqchip demonstration guest, vCPUs: "
        mov     eax, [r14 + GEN_VCPUS]
        call    print_number
        call    print
        .asciz  "\n"
        cmp     dword ptr [r14 + GEN_VCPUS], MAX_VCPUS
        ja      too_many

        call    pic_init
        call    ioapic_init
        call    start_processors

        call    test_pic_edge
        call    test_pit
        call    pic_mask_all
        xor     ebp, ebp                        # ebp: the vCPU under test
each_vcpu:
        call    test_ioapic_edge
        call    test_ioapic_level
        call    test_msi
        call    test_ipi
        mov     ecx, S_ONE_SHOT
        lea     rbx, [local_one_shot]
        call    run_on_vcpu
        mov     ecx, S_PERIODIC
        lea     rbx, [local_periodic]
        call    run_on_vcpu
        call    has_tsc_deadline
        jz      1f
        mov     ecx, S_DEADLINE
        lea     rbx, [local_deadline]
        call    run_on_vcpu
1:      mov     ecx, S_IPI_SELF
        lea     rbx, [local_ipi_self]
        call    run_on_vcpu
        inc     ebp
        cmp     ebp, [r14 + GEN_VCPUS]
        jb      each_vcpu

        call    print_rows
        mov     dword ptr [report], REPORT_MAGIC
        mov     dword ptr [r14 + GEN_REPORT], offset report
        call    rows_agree                      # al: 0 or 1
        out     EXIT_PORT, al
        hlt

too_many:
        call    print
        .asciz  "too many vCPUs\n"
        mov     al, 1
        out     EXIT_PORT, al
        hlt
