# A long-mode guest that does what its host says and reports every interrupt it takes.
#
# The host loads it at physical address 0x1000, sets the processor up (pages, GDT, IDT; see agent.py) and enters it at
# _start with RBX at this vCPU's mailbox and interrupts disabled. They are enabled only while an operation waits for
# them, and one interrupt ends that. Ports:
#   0x10  write  the vector just taken
#   0x11  write  an unexpected exception: its vector. The guest is lost
#   0x12  read   the next operation: its number. The one before is complete
#   0x13  write  a start-up IPI has come: bits 8-15 of CS
#   0x14  write  nothing: an exit with interrupts enabled
# Operations are OPERATION_SIZE apart, in the order of agent.Operation.

        .equ    TAKEN, 0x10
        .equ    CRASHED, 0x11
        .equ    COMMAND, 0x12
        .equ    STARTED, 0x13
        .equ    WINDOW, 0x14
        .equ    FIRST, 0                        # Mailbox: two arguments,
        .equ    SECOND, 8
        .equ    THIRD, 12                       #   or four of 32 bits,
        .equ    FOURTH, 4
        .equ    RESULT, 16                      #   what the operation read, or 1 once SPIN has begun,
        .equ    FAULT, 24                       #   1 if it raised #GP,
        .equ    STOP, 32                        #   and 1 to end SPIN
        .equ    OPERATION_SHIFT, 5
        .equ    RFLAGS_IF, 0x200                # Intel SDM vol. 1, 3.4.3
        .equ    GATE_SIZE, 16

        .globl  _start
_start:
next:   inl     $COMMAND, %eax
        shll    $OPERATION_SHIFT, %eax
        addl    $operations, %eax
        jmp     *%rax

        .balign 32
operations:
open:   sti                                     # let in what is pending; some processors look at it only
        nop                                     #   when they enter the guest again, so leave it
        outb    %al, $WINDOW
        nop
        cli
        jmp     next
        .balign 32
halt:   sti                                     # sleep until an interrupt has been taken
        hlt
awake:  cli
        jmp     next
        .balign 32
spin:   movl    $1, RESULT(%rbx)                # execute until an interrupt has been taken, or the host says stop
        sti
1:      nop
        testl   $1, STOP(%rbx)
        jz      1b
        cli
        jmp     next
        .balign 32
read_msr:
        movl    FIRST(%rbx), %ecx
        rdmsr
        movl    %eax, RESULT(%rbx)
        movl    %edx, RESULT+4(%rbx)
        jmp     next
        .balign 32
write_msr:
        movl    FIRST(%rbx), %ecx
        movl    SECOND(%rbx), %eax
        movl    SECOND+4(%rbx), %edx
        wrmsr
        jmp     next
        .balign 32
load:   movq    FIRST(%rbx), %rdx
        movl    (%rdx), %eax
        movl    %eax, RESULT(%rbx)
        jmp     next
        .balign 32
store:  movq    FIRST(%rbx), %rdx
        movl    SECOND(%rbx), %eax
        movl    %eax, (%rdx)
        jmp     next
        .balign 32
in:     movl    FIRST(%rbx), %edx
        xorl    %eax, %eax
        inb     %dx, %al
        movl    %eax, RESULT(%rbx)
        jmp     next
        .balign 32
out:    movl    FIRST(%rbx), %edx
        movl    SECOND(%rbx), %eax
        outb    %al, %dx
        jmp     next
        .balign 32
read_cr8:
        movq    %cr8, %rax
        movl    %eax, RESULT(%rbx)
        jmp     next
        .balign 32
write_cr8:
        movl    SECOND(%rbx), %eax
        movq    %rax, %cr8
        jmp     next
        .balign 32
read_tsc:
        rdtsc
        movl    %eax, RESULT(%rbx)
        movl    %edx, RESULT+4(%rbx)
        jmp     next
        .balign 32
in_word:
        movl    FIRST(%rbx), %edx
        xorl    %eax, %eax
        inw     %dx, %ax
        movl    %eax, RESULT(%rbx)
        jmp     next
        .balign 32
out_word:
        movl    FIRST(%rbx), %edx
        movl    SECOND(%rbx), %eax
        outw    %ax, %dx
        jmp     next
        .balign 32
in_dword:
        movl    FIRST(%rbx), %edx
        inl     %dx, %eax
        movl    %eax, RESULT(%rbx)
        jmp     next
        .balign 32
out_dword:
        movl    FIRST(%rbx), %edx
        movl    SECOND(%rbx), %eax
        outl    %eax, %dx
        jmp     next
        .balign 32
cpuid:  movl    FIRST(%rbx), %eax               # the four registers replace arguments and result
        movl    SECOND(%rbx), %ecx
        movq    %rbx, %rsi
        cpuid
        movl    %eax, FIRST(%rsi)
        movl    %ebx, SECOND(%rsi)
        movl    %ecx, RESULT(%rsi)
        movl    %edx, RESULT+4(%rsi)
        movq    %rsi, %rbx
        jmp     next
        .balign 32
switch: movl    FIRST(%rbx), %ecx               # two writes of one MSR and a load, with no exit between them
        movl    SECOND(%rbx), %eax
        xorl    %edx, %edx
        wrmsr
        movl    THIRD(%rbx), %eax
        wrmsr
        movl    FOURTH(%rbx), %edx
        movl    (%rdx), %eax
        movl    %eax, RESULT(%rbx)
        jmp     next

        .balign 32
taken:  pushq   %rax
        movb    8(%rsp), %al                    # the vector, pushed by the stub
        outb    %al, $TAKEN
        andq    $~RFLAGS_IF, 32(%rsp)           # one interrupt is enough: an NMI before HLT, or one that came
        movq    16(%rsp), %rax                  #   there as QEMU's SVM forgot the shadow of STI, must not be
        subq    $halt, %rax                     #   followed by a sleep
        cmpq    $(awake - halt), %rax
        jae     1f
        movq    $awake, 16(%rsp)
1:
        movl    $1, STOP(%rbx)
        popq    %rax
        addq    $8, %rsp
        iretq

        .org    0x300
general_protection:                             # only RDMSR and WRMSR are expected to raise it; skip them
        movl    $1, FAULT(%rbx)
        addq    $8, %rsp
        addq    $2, (%rsp)
        iretq

        .org    0x400
stubs:
        .set    vector, 0
        .rept   256
        pushq   $vector
        jmp     taken
        .balign GATE_SIZE
        .set    vector, vector + 1
        .endr

        .org    0x1400
unexpected:                                     # an exception with an error code; its vector is in the stub's place
        .set    vector, 0
        .rept   32
        movb    $vector, %al
        outb    %al, $CRASHED
        hlt
        .balign 8
        .set    vector, vector + 1
        .endr

        .org    0x2000
        .code16
start:  movw    %cs, %ax                        # where a start-up IPI with vector 3 enters, in real mode
        movb    %ah, %al
        outb    %al, $STARTED
1:      hlt
        jmp     1b
