# Takes interrupts from all sources at once on all vCPUs, and counts each on the vCPU and at the vector it came with.
#
# Everything happens in the handlers, which run with interrupts off; between them each vCPU counts down a while with
# interrupts on and then halts, so that interrupts find it in the guest as well as asleep. What comes how often is the
# host's to say, in PARAMETERS; what came is in each vCPU's page: TAKEN and SENT, 256 numbers of 32 bits each.
#
#   vector     what                         what the handler does besides counting it and ending it
#   0x20-0x2F  line of the 8259s            reports to the host, which waits for that before the next
#   0x30-0x4F  device: edge, level, MSI     likewise
#   0x50       timer, one-shot              arms it again, unless it was the last
#   0x51       timer, periodic              stops it after the last
#   0x52       timer, TSC deadline          as one-shot
#   0x53       PIT through the IOAPIC       starts it again, unless it was the last
#   0x60-0x6F  token of an IPI ring         sends the same vector on to the next vCPU, unless it was the last
#   0x70       start of the broadcasts      sends the first broadcast
#   0x71       broadcast                    the last vCPU to take it sends the next, unless it was the last
#   0x80       flood                        nothing
# Each vector but these ends the run, as exceptions do. Ports (written: the vector): see below.
.include "pc.inc"
.include "smp.inc"

.equ REPORT_PORT,  0x510                 # a device's interrupt was taken
.equ DONE_PORT,   0x511                 # it was the last of its kind
.equ READY_PORT,  0x512                 # this vCPU takes interrupts from now on
.equ FAILED_PORT, 0x513                 # an interrupt that no source raised, or an exception

.equ PARAMETERS,  0x10000
.equ   VCPUS,        PARAMETERS + 0x00
.equ   PIT_LEFT,     PARAMETERS + 0x04
.equ   ACKNOWLEDGED, PARAMETERS + 0x08  # how many vCPUs have taken this broadcast
.equ   PIC_MASKS,    PARAMETERS + 0x0C  # one byte each
.equ   REDIRECTION,  PARAMETERS + 0x40  # entries of the IOAPIC, 64 bits each
.equ   TIMER_VECTOR, PARAMETERS + 0x200 # of each vCPU, 32 bits
.equ   TIMER_COUNT,  PARAMETERS + 0x300
.equ   TIMER_LEFT,   PARAMETERS + 0x400
.equ   BUSY,         PARAMETERS + 0x500
.equ   LEFT,         PARAMETERS + 0x800 # of each token and of the broadcasts, by vector: interrupts still to send
.equ TAKEN,       0                     # in each vCPU's page
.equ SENT,        0x400

.equ PIC_VECTOR,   0x20
.equ TIMER_ONE_SHOT_VECTOR, 0x50
.equ TIMER_PERIODIC_VECTOR, 0x51
.equ TIMER_DEADLINE_VECTOR, 0x52
.equ PIT_VECTOR,   0x53
.equ START_VECTOR, 0x70
.equ BROADCAST_VECTOR, 0x71
.equ PIT_COUNTER0, 0x40
.equ PIT_CONTROL,  0x43
.equ   PIT_MODE0,  0x30
.equ PIT_COUNT,    600                  # about half a millisecond
.equ IOAPIC,       0xFEC00000

# Registers that handlers and the loop share: ebx is the vector in a handler, and below 256 always; r8 is the loop's,
# rbp and r15 stay as they are. Handlers change eax, ecx, edx.
vcpu_main:
        xor     ebx, ebx
        test    ebp, ebp
        jnz     1f
        call    board_init
1:      mov     ebx, [TIMER_VECTOR + rbp * 4]
        mov     eax, ebx
        cmp     ebx, TIMER_PERIODIC_VECTOR
        jne     1f
        or      eax, TIMER_PERIODIC
1:      cmp     ebx, TIMER_DEADLINE_VECTOR
        jne     1f
        or      eax, TIMER_DEADLINE
1:      mov     ecx, X2APIC_TIMER
        xor     edx, edx
        wrmsr
        cmp     dword ptr [TIMER_LEFT + rbp * 4], 0
        je      1f
        call    arm_timer
1:      mov     dx, READY_PORT
        out     dx, al
idle:   mov     r8d, [BUSY + rbp * 4]
        sti
1:      dec     r8d
        jg      1b
        hlt
        jmp     idle

board_init:                             # the 8259s, through LINT0; the IOAPIC; the PIT
        pic_setup [PIC_MASKS], [PIC_MASKS + 1]
        write_msr X2APIC_LINT0, LVT_EXTINT
        mov     edi, IOAPIC
        xor     ecx, ecx
1:      mov     eax, [REDIRECTION + rcx * 4 + 4]
        lea     edx, [rcx + 0x11]       # the high half first: the low half unmasks
        mov     [rdi], edx
        mov     [rdi + 0x10], eax
        mov     eax, [REDIRECTION + rcx * 4]
        dec     edx
        mov     [rdi], edx
        mov     [rdi + 0x10], eax
        add     ecx, 2
        cmp     ecx, 48
        jb      1b
        mov     al, PIT_MODE0
        out     PIT_CONTROL, al
        cmp     dword ptr [PIT_LEFT], 0
        je      1f
start_pit:
        mov     al, PIT_COUNT & 0xFF
        out     PIT_COUNTER0, al
        mov     al, PIT_COUNT >> 8
        out     PIT_COUNTER0, al
1:      ret

arm_timer:                              # of vector ebx
        cmp     ebx, TIMER_DEADLINE_VECTOR
        je      1f
        mov     ecx, X2APIC_INITIAL
        mov     eax, [TIMER_COUNT + rbp * 4]
        xor     edx, edx
        wrmsr
        ret
1:      rdtsc
        add     eax, [TIMER_COUNT + rbp * 4]
        adc     edx, 0
        mov     ecx, IA32_TSC_DEADLINE
        wrmsr
        ret

# --- Handlers. The end comes first: a reported interrupt has ended ---
pic_line:
        mov     al, EOI
        cmp     ebx, PIC_VECTOR + 8
        jb      1f
        out     PIC2_COMMAND, al
1:      out     PIC1_COMMAND, al
        jmp     tell

device: end_of_interrupt
tell:   mov     eax, ebx
        mov     dx, REPORT_PORT
        out     dx, al
        iretq

flood:  end_of_interrupt
        iretq

one_shot:
        end_of_interrupt
        dec     dword ptr [TIMER_LEFT + rbp * 4]
        jz      done
        call    arm_timer
        iretq

periodic:
        end_of_interrupt
        cmp     dword ptr [TIMER_LEFT + rbp * 4], 0
        je      1f                      # it expired once more before it was stopped
        dec     dword ptr [TIMER_LEFT + rbp * 4]
        jnz     1f
        write_msr X2APIC_INITIAL, 0
        jmp     done
1:      iretq

pit:    end_of_interrupt
        dec     dword ptr [PIT_LEFT]
        jz      done
        call    start_pit
        iretq

token:  end_of_interrupt
        dec     dword ptr [LEFT + rbx * 4]
        js      done
        lea     edx, [rbp + 1]
        cmp     edx, [VCPUS]
        jb      1f
        xor     edx, edx
1:      mov     eax, ebx
        mov     ecx, X2APIC_ICR
        inc     dword ptr [r15 + SENT + rbx * 4]
        wrmsr
        iretq

broadcast:
        end_of_interrupt                # before it counts as taken: so the next is not coalesced with this one
        mov     eax, 1
        lock xadd [ACKNOWLEDGED], eax
        add     eax, 2                  # with this one and the sender
        cmp     eax, [VCPUS]
        jb      1f
        mov     dword ptr [ACKNOWLEDGED], 0
start_broadcast:
        mov     ebx, BROADCAST_VECTOR
        dec     dword ptr [LEFT + BROADCAST_VECTOR * 4]
        js      done
        inc     dword ptr [r15 + SENT + BROADCAST_VECTOR * 4]
        write_msr X2APIC_ICR, ICR_OTHERS + ICR_ASSERT + BROADCAST_VECTOR
1:      iretq

first_broadcast:
        end_of_interrupt
        jmp     start_broadcast

done:   mov     eax, ebx
        mov     dx, DONE_PORT
        out     dx, al
        iretq

spurious:                               # sets no bit in service (SDM vol. 3, 12.9)
        iretq

unexpected:
        mov     eax, ebx
        mov     dx, FAILED_PORT
        out     dx, al
        cli
        hlt

.macro stub handler
        inc     dword ptr [r15 + TAKEN + 4 * vector]
        mov     bl, vector
        jmp     \handler
        .balign 16
        .set    vector, vector + 1
.endm
.macro stubs until, handler
.rept \until - vector
        stub    \handler
.endr
.endm
        .balign 16
        .set    vector, 0
vector_stubs:
        stubs   0x20, unexpected
        stubs   0x30, pic_line
        stubs   0x50, device
        stub    one_shot
        stub    periodic
        stub    one_shot
        stub    pit
        stubs   0x60, unexpected
        stubs   0x70, token
        stub    first_broadcast
        stub    broadcast
        stubs   0x80, unexpected
        stub    flood
        stubs   0xFF, unexpected
        stub    spurious
