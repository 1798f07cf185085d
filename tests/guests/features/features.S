# One piece of code for each feature of CPUID, after "@name:". Memory at RSI (and RDI, 64 bytes aligned) is free.
# announced: executes. absent: must raise #UD, for CPUID does not announce it.

        .macro  announced name:vararg
        .ascii  "@\name:"
        .endm
        .macro  absent name:vararg
        .ascii  "@no \name:"
        .endm

        .code64
        announced FPU
        fldpi
        announced TSC
        rdtsc
        announced MSR
        mov     $0x10, %ecx
        rdmsr
        announced CMPXCHG8B
        cmpxchg8b (%rsi)
        announced CMOV
        cmove   %eax, %ecx
        announced CLFSH
        clflush (%rsi)
        announced MMX
        paddb   %mm0, %mm1
        announced FXSR
        fxsave  (%rdi)
        fxrstor (%rdi)
        announced SSE
        addps   %xmm0, %xmm1
        announced SSE2
        addpd   %xmm0, %xmm1
        announced SSE3
        addsubpd %xmm0, %xmm1
        announced PCLMULQDQ
        pclmulqdq $0, %xmm0, %xmm1
        announced SSSE3
        pabsb   %xmm0, %xmm1
        announced CMPXCHG16B
        cmpxchg16b (%rdi)
        announced SSE41
        ptest   %xmm0, %xmm1
        announced SSE42
        pcmpgtq %xmm0, %xmm1
        crc32b  %al, %ecx
        announced MOVBE
        movbe   (%rsi), %eax
        announced POPCNT
        popcnt  %eax, %ecx
        announced AES
        aesenc  %xmm0, %xmm1
        aeskeygenassist $1, %xmm0, %xmm1
        announced XSAVE
        xor     %ecx, %ecx
        xgetbv
        mov     $3, %eax
        xsetbv
        xsave   (%rdi)
        xrstor  (%rdi)
        announced RDRAND
        rdrand  %eax
        announced FSGSBASE
        rdfsbase %rax
        wrfsbase %rax
        rdgsbase %rax
        wrgsbase %rax
        announced BMI1
        andn    %eax, %ecx, %edx
        tzcnt   %eax, %ecx
        announced BMI2
        pext    %eax, %ecx, %edx
        announced RDSEED
        rdseed  %eax
        announced ADX
        adcx    %eax, %ecx
        adox    %eax, %ecx
        announced SMAP
        stac
        clac
        announced CLFLUSHOPT
        clflushopt (%rsi)
        announced CLWB
        clwb    (%rsi)
        announced XSAVEOPT
        mov     $3, %eax
        xor     %edx, %edx
        xsaveopt (%rdi)
        announced XGETBV1               # ECX = 1
        mov     $1, %ecx
        xgetbv
        announced LahfSahf
        lahf
        sahf
        announced AltMovCr8
        mov     $5, %eax
        .byte   0xf0
        mov     %rax, %cr0              # to CR8
        .byte   0xf0
        mov     %cr0, %rbx
        cmp     $5, %ebx
        je      1f
        ud2
1:
        announced ABM
        lzcnt   %eax, %ecx
        announced SSE4A
        extrq   $1, $1, %xmm0
        movntss %xmm0, (%rsi)
        announced SysCallSysRet
        mov     $0xc0000080, %ecx
        rdmsr
        or      $1, %eax
        wrmsr
        mov     $0xc0000082, %ecx       # LSTAR
        lea     1f(%rip), %rax
        xor     %edx, %edx
        wrmsr
        mov     $0xc0000081, %ecx       # STAR
        mov     $8, %edx
        wrmsr
        syscall
        ud2
1:
        announced NX
        mov     $0xc0000080, %ecx
        rdmsr
        or      $0x800, %eax
        wrmsr
        announced MmxExt
        pshufw  $0, %mm0, %mm1
        announced RDTSCP
        rdtscp
        announced LM
        mov     %r8, %r9

        absent  MONITOR
        monitor
        absent  MWAIT
        mwait
        absent  VMX
        vmcall
        absent  VMXON
        vmxon   (%rsi)
        absent  SMX
        getsec
        absent  FMA
        vfmadd132pd %xmm0, %xmm1, %xmm2
        absent  INVPCID
        invpcid (%rsi), %rax
        absent  AVX
        vaddpd  %ymm0, %ymm1, %ymm2
        absent  AVX of 128 bits
        vaddpd  %xmm0, %xmm1, %xmm2
        absent  F16C
        vcvtph2ps %xmm0, %xmm1
        absent  AVX2
        vpaddb  %ymm0, %ymm1, %ymm2
        absent  AVX512F
        vaddpd  %zmm0, %zmm1, %zmm2
        absent  SHA
        sha1msg1 %xmm0, %xmm1
        absent  RTM
        xbegin  1f
1:
        absent  XTEST
        xtest
        absent  RDPID
        rdpid   %rax
        absent  PKU
        rdpkru
        absent  GFNI
        gf2p8mulb %xmm0, %xmm1
        absent  MOVDIRI
        movdiri %eax, (%rsi)
        absent  MOVDIR64B
        movdir64b (%rsi), %rax
        absent  WAITPKG
        umonitor %rax
        absent  ENQCMD
        enqcmd  (%rsi), %rax
        absent  SERIALIZE
        serialize
        absent  PTWRITE
        ptwritel %eax
        absent  PCONFIG
        pconfig
        absent  SGX
        encls
        absent  XOP
        vphaddbw %xmm0, %xmm1
        absent  FMA4
        vfmaddpd %xmm0, %xmm1, %xmm2, %xmm3
        absent  TBM
        blcfill %eax, %ecx
        absent  LWP
        llwpcb  %rax
        absent  SVM
        vmrun
        absent  VMMCALL
        vmmcall
        absent  STGI
        stgi
        absent  CLGI
        clgi
        absent  SKINIT
        skinit
        absent  INVLPGA
        invlpga
        absent  MONITORX
        monitorx
        absent  MWAITX
        mwaitx
        absent  CLZERO
        clzero
        absent  RDPRU
        rdpru
        absent  3DNow
        pfadd   %mm0, %mm1
        absent  3DNowExt
        pswapd  %mm0, %mm1
        absent  XSAVEC
        xsavec  (%rdi)
        absent  XSAVES
        xsaves  (%rdi)
        absent  SysEnterSysExit in long mode    # of an AMD processor
        sysenter

        .code32
        announced SysEnterSysExit
        mov     $0x174, %ecx            # SYSENTER_CS
        mov     $8, %eax
        xor     %edx, %edx
        wrmsr
        mov     $0x175, %ecx            # SYSENTER_ESP
        mov     %esp, %eax
        wrmsr
        mov     $0x176, %ecx            # SYSENTER_EIP
        call    1f
1:      pop     %eax
        add     $2f - 1b, %eax
        wrmsr
        sysenter
        ud2
2:
