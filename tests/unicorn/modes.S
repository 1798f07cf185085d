# From real mode through protected mode to long mode, to its user and back by SYSCALL, and all the way back.
# Each station writes a letter to port 0x16, 0x32 or 0x64.

        PML4 = 0x10000

        .code16
start:  mov     $'r', %al
        out     %al, $0x16
        cli
        lgdt    gdt_pointer
        mov     %cr0, %eax
        or      $1, %al
        mov     %eax, %cr0
        ljmp    $0x08, $protected

        .code32
protected:
        mov     $0x10, %ax
        mov     %ax, %ds
        mov     %ax, %es
        mov     %ax, %ss
        mov     $'p', %al
        out     %al, $0x32
        movl    $PML4 + 0x1003 + 4, PML4        # also for the user
        movl    $PML4 + 0x2003 + 4, PML4 + 0x1000
        movl    $0x87, PML4 + 0x2000
        mov     $0x20, %eax
        mov     %eax, %cr4
        mov     $PML4, %eax
        mov     %eax, %cr3
        mov     $0xC0000080, %ecx
        rdmsr
        or      $0x101, %eax            # LME, SCE
        wrmsr
        mov     %cr0, %eax
        or      $0x80000000, %eax
        mov     %eax, %cr0
        ljmp    $0x18, $long

        .code64
long:   mov     $'l', %al
        out     %al, $0x64
        mov     $0xC0000081, %ecx       # STAR: SYSCALL takes 0x18 and 0x20, SYSRET 0x38 and 0x30
        mov     $0x00280018, %edx
        xor     %eax, %eax
        wrmsr
        mov     $0xC0000082, %ecx       # LSTAR
        xor     %edx, %edx
        mov     $kernel, %eax
        wrmsr
        mov     $0xC0000084, %ecx       # SFMASK
        xor     %eax, %eax
        wrmsr
        mov     $user, %ecx
        mov     $0x3002, %r11d          # IOPL 3
        sysretq

user:   mov     $'u', %al
        out     %al, $0x64
        syscall

kernel: mov     $'s', %al
        out     %al, $0x64
        ljmp    *compatible

        .code32
back:   mov     %cr0, %eax
        and     $0x7FFFFFFF, %eax
        mov     %eax, %cr0
        mov     $0xC0000080, %ecx
        rdmsr
        and     $~0x100, %eax
        wrmsr
        mov     $'c', %al
        out     %al, $0x32
        ljmp    $0x40, $real16

        .code16
real16: mov     %cr0, %eax
        and     $~1, %al
        mov     %eax, %cr0
        ljmp    $0, $real

real:   mov     $'R', %al
        out     %al, $0x16
        hlt

        .balign 8
compatible:
        .long   back
        .word   0x08
        .balign 8
gdt:    .quad   0
        .quad   0x00CF9B000000FFFF      # 08 code of 32 bits
        .quad   0x00CF93000000FFFF      # 10 data
        .quad   0x00AF9B000000FFFF      # 18 code of 64 bits
        .quad   0x00CF93000000FFFF      # 20 data
        .quad   0                       # 28
        .quad   0x00CFF3000000FFFF      # 30 data of the user
        .quad   0x00AFFB000000FFFF      # 38 code of the user
        .quad   0x000F9B000000FFFF      # 40 code of 16 bits
gdt_pointer:
        .word   gdt_pointer - gdt - 1
        .long   gdt
