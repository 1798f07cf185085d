/* The limit: the same system calls without Python. Compiled when a benchmark starts (limits.py).
 *
 * Each function returns seconds for one of what it does, or minus an errno. The library's own ioctl() is in the way
 * only of a process that was started with it in LD_PRELOAD: there KVM_RUN can be made to return at once.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile int repeating;

/* From now on KVM_RUN leaves the run area as the last exit did. */
void repeat_exit(int on)
{
        repeating = on;
}

static double now(void)
{
        struct timespec time;
        clock_gettime(CLOCK_MONOTONIC, &time);
        return time.tv_sec + time.tv_nsec * 1e-9;
}

/* With IRQCHIP_COUNT_RUNS in the environment: the first thread's time in KVM_RUN and between, printed at the end. */
static int counting, counted;
static __thread int mine;
static long runs;
static double inside, between, left;

__attribute__((constructor)) static void start_counting(void)
{
        counting = getenv("IRQCHIP_COUNT_RUNS") != NULL;
}

__attribute__((destructor)) static void print_counts(void)
{
        if (runs)
                fprintf(stderr, "runs %ld inside %.9f between %.9f\n", runs, inside, between);
}

static long call(int fd, unsigned long request, void *argument)
{
        return syscall(SYS_ioctl, fd, request, argument);
}

int ioctl(int fd, unsigned long request, void *argument)
{
        if (repeating && request == KVM_RUN)
                return 0;
        if (!counting || request != KVM_RUN || !(mine = mine || !__sync_lock_test_and_set(&counted, 1)))
                return call(fd, request, argument);
        double start = now();
        long result = call(fd, request, argument);
        int error = errno;
        if (runs++)
                between += start - left;
        left = now();
        inside += left - start;
        errno = error;
        return result;
}

double repeat_ioctl(int fd, unsigned long request, void *argument, long times)
{
        double start = now();
        for (long i = 0; i < times; i++)
                if (call(fd, request, argument) < 0)
                        return -errno;
        return (now() - start) / times;
}

/* An event copied, as a chip does that waits for it (undo: the copy closed). */
double repeat_copy(int fd, int undo, long times)
{
        double spent = 0;
        for (long i = 0; i < times; i++) {
                double start = now();
                int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
                double middle = now();
                if (copy < 0)
                        return -errno;
                close(copy);
                spent += undo ? now() - middle : middle - start;
        }
        return spent / times;
}

/* An event assigned to a line (undo: taken away from it). */
double repeat_irqfd(int vm, int fd, unsigned gsi, int undo, long times)
{
        struct kvm_irqfd irqfd = {.fd = fd, .gsi = gsi};
        double spent = 0;
        for (long i = 0; i < times; i++) {
                double start = now();
                irqfd.flags = 0;
                if (call(vm, KVM_IRQFD, &irqfd) < 0)
                        return -errno;
                double middle = now();
                irqfd.flags = KVM_IRQFD_FLAG_DEASSIGN;
                if (call(vm, KVM_IRQFD, &irqfd) < 0)
                        return -errno;
                spent += undo ? now() - middle : middle - start;
        }
        return spent / times;
}

/* The time from a signal of the event to a change of *counter, which the guest's handler makes. */
double signal_to_handler(int fd, volatile uint32_t *counter, long times, double *samples)
{
        uint64_t one = 1;
        for (long i = 0; i < times; i++) {
                uint32_t before = *counter;
                double start = now(), passed = 0;
                if (write(fd, &one, sizeof one) < 0)
                        return -errno;
                while (*counter == before && (passed = now() - start) < 1)
                        sched_yield();
                if (passed >= 1)
                        return -ETIME;
                samples[i] = now() - start;
                for (double until = now() + 50e-6; now() < until;)
                        sched_yield(); /* the handler ends */
        }
        return 0;
}

/* A VM with a chip (0 none, 1 all of it, 2 local APICs) and vCPUs, each with its run area; closed again. */
double create_and_close(int chip, int vcpus)
{
        int fds[256];
        void *areas[256];
        struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {24}};
        struct kvm_pit_config pit = {0};
        double start = now();
        int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
        if (kvm < 0)
                return -errno;
        int vm = call(kvm, KVM_CREATE_VM, 0), size = call(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), made = 0;
        double failed = vm < 0 ? -errno : 0;
        if (!failed && chip == 1 && (call(vm, KVM_CREATE_IRQCHIP, 0) < 0 || call(vm, KVM_CREATE_PIT2, &pit) < 0))
                failed = -errno;
        if (!failed && chip == 2 && call(vm, KVM_ENABLE_CAP, &split) < 0)
                failed = -errno;
        while (!failed && made < vcpus) {
                fds[made] = call(vm, KVM_CREATE_VCPU, (void *)(long)made);
                if (fds[made] < 0) {
                        failed = -errno;
                        break;
                }
                areas[made] = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, fds[made], 0);
                made++;
        }
        while (made--) {
                munmap(areas[made], size);
                close(fds[made]);
        }
        if (vm >= 0)
                close(vm);
        close(kvm);
        return failed ? failed : now() - start;
}
