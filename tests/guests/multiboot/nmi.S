# vCPU 0 sends two NMIs to vCPU 1 in quick succession, 1,000 times; vCPU 1 counts what it takes. The host says at
# MODE what vCPU 1 does meanwhile.
.include "pc.inc"
.include "smp.inc"
.equ COUNTED,  0x18000                  # by the handler
.equ SEEN,     0x18004                  # that count, as the interrupted code has seen it
.equ MODE,     0x18008
.equ   SPIN,   0
.equ   HALT,   1                        # with interrupts off
.equ   OUTPUT, 2                        # exits all the time
.equ READY,    0x1800C                  # vCPU 1 has an IDT
.equ ROUNDS,   1000
.equ ICR_NMI,  4 << 8
.equ NMI_VECTOR, 2
.equ VCPU_1,   1

vcpu_main:
        test    ebp, ebp
        jnz     receive
0:      pause
        cmp     dword ptr [READY], 0
        je      0b
        xor     ebx, ebx
send:   add     ebx, 2
        mov     ecx, X2APIC_ICR
        mov     eax, ICR_ASSERT + ICR_NMI
        mov     edx, VCPU_1
        wrmsr
        wrmsr
1:      pause
        cmp     [SEEN], ebx             # and not COUNTED: NMIs are blocked until the handler has ended
        jne     1b
        cmp     ebx, 2 * ROUNDS
        jne     send
        xor     eax, eax
        out     EXIT_PORT, al

receive:
        mov     edx, [MODE]
        mov     dword ptr [READY], 1
again:  mov     eax, [COUNTED]
        mov     [SEEN], eax
        cmp     edx, HALT
        jb      again
        ja      1f
        hlt
        jmp     again
1:      out     0x80, al
        jmp     again

        .balign 16
vector_stubs:
        .rept   NMI_VECTOR
        ud2
        .balign 16
        .endr
        inc     dword ptr [COUNTED]
        mov     qword ptr [rsp], offset again   # not to HLT, with a count that has not been seen
        iretq
        .balign 16
        .rept   253
        ud2
        .balign 16
        .endr
