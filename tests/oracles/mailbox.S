# The guest of the KVM oracle: does one access after another for its host, in long mode.
#
# %r15 points at the mailbox: operation, address, value, result, fault, vector (64 bits each). Each OUT to
# port 0xF4 says that the last operation is done; one to 0xF5 says nothing. Paging, GDT, IDT and registers are set up by the host.
    .code64
    .globl _start
_start:
    out %al, $0xF4
    mov 0(%r15), %rax
    shl $5, %rax
    lea operations(%rip), %rsi
    add %rax, %rsi
    mov 8(%r15), %rdi
    mov %rdi, %rdx
    mov %rdi, %rcx
    mov 16(%r15), %rax
    jmp *%rsi

    .balign 32
store:
    mov %rax, 24(%r15)
done:
    jmp _start

    .balign 32
interrupt:                      # the stub has pushed the vector
    pop %rax
    mov %rax, 40(%r15)
    andq $~0x200, 16(%rsp)      # take no second interrupt
    iretq

    .balign 32
general_protection:
    movq $1, 32(%r15)
    lea done(%rip), %rax
    mov %rax, 8(%rsp)
    add $8, %rsp                # the error code
    iretq

    .macro operation
    .balign 32
    .endm

    .balign 32
operations:
    operation                   # 0
    xor %eax, %eax
    in %dx, %al
    jmp store
    operation
    xor %eax, %eax
    in %dx, %ax
    jmp store
    operation
    in %dx, %eax
    jmp store
    operation                   # 3
    out %al, %dx
    jmp done
    operation
    out %ax, %dx
    jmp done
    operation
    out %eax, %dx
    jmp done
    operation                   # 6
    xor %eax, %eax
    mov (%rdi), %al
    jmp store
    operation
    xor %eax, %eax
    mov (%rdi), %ax
    jmp store
    operation
    mov (%rdi), %eax
    jmp store
    operation
    mov (%rdi), %rax
    jmp store
    operation                   # 10
    mov %al, (%rdi)
    jmp done
    operation
    mov %ax, (%rdi)
    jmp done
    operation
    mov %eax, (%rdi)
    jmp done
    operation
    mov %rax, (%rdi)
    jmp done
    operation                   # 14
    rdmsr
    shl $32, %rdx
    or %rdx, %rax
    jmp store
    operation
    mov %rax, %rdx
    shr $32, %rdx
    wrmsr
    jmp done
    operation                   # 16
    mov %cr8, %rax
    jmp store
    operation
    mov %rax, %cr8
    jmp done
    operation                   # 18
    sti
    out %al, $0xF5              # some KVMs look for interrupts only when they enter the guest
    nop
    cli
    jmp done
    operation                   # 19
    rdtsc
    shl $32, %rdx
    or %rdx, %rax
    jmp store
