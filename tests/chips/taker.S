# A long-mode guest that takes every interrupt and tells the host its vector.
#
# The host loads it at physical address 0x1000, sets the processor up (identity-mapped pages, GDT, and an IDT whose
# gate v points at stubs + 16 * v) and enters it at _start. Ports:
#   0x10  write  the vector just taken
#         read   what to end it with: bit 0 local APIC, bit 1 primary PIC, bit 2 secondary PIC
#   0x11  write  ready: interrupts are enabled next

        .equ    IA32_APIC_BASE, 0x1B            # Intel SDM vol. 3, 12.4.4
        .equ    APIC_BASE_EXTD, 1 << 10         #   x2APIC mode
        .equ    X2APIC_EOI, 0x80B               # Intel SDM vol. 3, table 12-6
        .equ    X2APIC_SIVR, 0x80F
        .equ    SIVR_ENABLE, 1 << 8
        .equ    PIC_EOI, 0x20                   # OCW2, non-specific EOI
        .equ    STUB_SIZE, 16

        .globl  _start
_start: movl    $IA32_APIC_BASE, %ecx
        rdmsr
        orl     $APIC_BASE_EXTD, %eax
        wrmsr
        movl    $X2APIC_SIVR, %ecx
        movl    $(SIVR_ENABLE | 0xFF), %eax
        xorl    %edx, %edx
        wrmsr
        outb    %al, $0x11
idle:   sti
        hlt
        jmp     idle

taken:  pushq   %rax
        pushq   %rcx
        pushq   %rdx
        movb    24(%rsp), %al                   # the vector, pushed by the stub
        outb    %al, $0x10
        inb     $0x10, %al
        movb    %al, %dl
        movb    $PIC_EOI, %al
        testb   $4, %dl
        jz      1f
        outb    %al, $0xA0
1:      testb   $2, %dl
        jz      2f
        outb    %al, $0x20
2:      testb   $1, %dl
        jz      3f
        movl    $X2APIC_EOI, %ecx
        xorl    %eax, %eax
        xorl    %edx, %edx
        wrmsr
3:      popq    %rdx
        popq    %rcx
        popq    %rax
        addq    $8, %rsp
        iretq

        .org    0x100
stubs:
        .set    vector, 0
        .rept   256
        pushq   $vector
        jmp     taken
        .balign STUB_SIZE
        .set    vector, vector + 1
        .endr
