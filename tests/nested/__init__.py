"""A second, real KVM: kvm_amd in a Linux guest of QEMU, whose TCG emulates AMD's SVM, so that it needs no KVM itself.

`python -m tests.nested --help` runs pytest or any command there; `test_nested.py` makes it part of the test suite.

    kernel.py     Debian's kernel for clouds: finding and fetching it, its modules in the order of loading
    image.py      the initramfs: this interpreter, its packages and this repository, each at the path it has here
    init.py       process 1 inside: loads KVM, runs one command, reports its exit status, ends the machine
    machine.py    QEMU: console, report and deadline
    report.py     the pytest plugin inside that sends each test's result out
"""
