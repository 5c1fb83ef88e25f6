"""Guests of 512 bytes.

BUSY is never idle: every vCPU loops, and the first reads a sector again and again, so that QEMU's own threads are busy
too.

    cli; xor %ax,%ax; mov %ax,%ds; mov %ax,%es; mov %ax,%ss; mov $0x7c00,%sp; mov %dl,drive
    lgdt gdtr; mov %cr0,%eax; or $1,%al; mov %eax,%cr0; mov $8,%bx; mov %bx,%ds; and $0xfe,%al; mov %eax,%cr0
    xor %bx,%bx; mov %bx,%ds                    # 4 GiB can be reached in real mode
    movw $0xfeeb,0x8000                         # jmp . : what the other vCPUs run
    mov $0xfee00300,%edi                        # the local APIC's command register
    movl $0x000c4500,(%edi); mov $4,%dx         # INIT to all others
 1: xor %cx,%cx; 2: loop 2b
    movl $0x000c4608,(%edi); dec %dx; jnz 1b    # start at 0x8000
    sti
 3: mov $0x0201,%ax; mov $1,%cx; xor %dh,%dh; mov drive,%dl; mov $0x8200,%bx; int $0x13; jmp 3b

EJECTS does all that a guest has to do when a device is taken away from a machine of type `pc`: it reads which slots are
asked for and ejects them (QEMU's docs/specs/acpi_pci_hotplug).

    cli; xor %eax,%eax; mov $0xae10,%dx; out %eax,(%dx)                         # the root bus
 1: mov $0xae04,%dx; in (%dx),%eax; mov $0xae08,%dx; out %eax,(%dx); jmp 1b

SPEAKS rests between the ticks of its clock (18 a second).  At each it writes a dot to its serial port, or says back
what was said to it; when somebody presses the power button, a machine of type `pc` is off.

    cli; xor %ax,%ax; mov %ax,%ss; mov $0x7c00,%sp; sti
    mov $0x602,%dx; mov $0x0100,%ax; out %ax,(%dx)                              # ACPI: the button counts
 1: hlt
    mov $0x3fd,%dx; in (%dx),%al; test $1,%al                                   # has anybody said something?
    mov $'.',%al; mov $0x3f8,%dx; jz 2f; in (%dx),%al
 2: out %al,(%dx)
    mov $0x600,%dx; in (%dx),%ax; test $1,%ah; jz 1b
    mov $0x604,%dx; mov $0x2000,%ax; out %ax,(%dx); jmp 1b                      # off
"""

from __future__ import annotations

_CODE = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007c88167b7c0f0116757c0f20c00c010f22c0bb08008edb24fe0f22c031db8edbc7060080ebfe66bf0003e0fe6766"
    "c70700450c00ba040031c9e2fe6766c70708460c004a75f1fbb80102b9010030f68a167b7cbb0082cd13ebed0000000000000000ffff000000"
    "92cf000f00657c0000"
)
BUSY = _CODE + bytes(510 - len(_CODE)) + b"\x55\xaa"
_EJECT = bytes.fromhex("fa6631c0ba10ae66efba04ae66edba08ae66efebf4")
EJECTS = _EJECT + bytes(510 - len(_EJECT)) + b"\x55\xaa"
_SPEAK = bytes.fromhex(
    "fa31c08ed0bc007cfbba0206b80001eff4bafd03eca801b02ebaf8037401eceeba0006edf6c40174e7ba0406b80020efebde"
)
SPEAKS = _SPEAK + bytes(510 - len(_SPEAK)) + b"\x55\xaa"
DISK_BYTES = 2 * 2**20  # SeaBIOS reads nothing from a disk of less than about one MiB
