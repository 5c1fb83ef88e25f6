"""What the host says of itself, read from files as the kernel writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Dict

from vmagent.core.capacity import Device
from vmagent.host import room


def host(root: Path, files: Dict[str, str], links: Dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    for name, target in links.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    return root


PROC = {"proc/sys/fs/file-nr": "10240\t0\t100000\n", "proc/loadavg": "0.0 0.1 0.2 3/700 4711\n",
        "proc/sys/kernel/threads-max": "50000\n", "proc/sys/kernel/pid_max": "32768\n"}
NET = "sys/class/net"


def test_what_the_kernel_counts_less_a_tenth(tmp_path: Path) -> None:
    ports = {f"{NET}/br0/brif/{name}/state": "3" for name in ("eth0", "vaaaaaaaaaaaa")}
    low = room.low(["br0", "br1"], host(tmp_path, {**PROC, **ports}, {}))
    assert low == room.Low(100000 - 10000 - 10240, 32768 - 3276 - 700, {"br0": 1021})


def test_what_it_does_not_say_is_not_known(tmp_path: Path) -> None:
    assert room.low(["br0"], tmp_path) == room.Low(None, None, {})
    odd = {"proc/sys/fs/file-nr": "many", "proc/loadavg": "1 2", "proc/sys/kernel/threads-max": "", "sys/x": ""}
    assert room.low([], host(tmp_path, odd, {})) == room.Low(None, None, {})


def link(root: Path, bridge: str = "br0") -> object:
    return room.around([bridge], root).links_kbit[bridge]


def test_the_uplink_is_what_has_a_device_behind_it(tmp_path: Path) -> None:
    host(tmp_path, {f"{NET}/br0/brif/eth0/state": "3", f"{NET}/br0/brif/tap0/state": "3",
                    f"{NET}/eth0/speed": "10000\n", f"{NET}/eth0/device/x": "",
                    f"{NET}/tap0/speed": "100000\n", f"{NET}/tap0/tun_flags": "0x1002", f"{NET}/tap0/device/x": ""}, {})
    assert link(tmp_path) == 10_000_000


def test_through_a_vlan_and_a_bond(tmp_path: Path) -> None:
    host(tmp_path, {f"{NET}/br0/brif/bond0.7/state": "3", f"{NET}/bond0.7/speed": "20000\n",
                    f"{NET}/br1/brif/vlan9/state": "3", f"{NET}/vlan9/x": "", f"{NET}/eth1/speed": "25000\n",
                    f"{NET}/eth1/device/x": ""},
         {f"{NET}/bond0.7/lower_bond0": "../bond0", f"{NET}/vlan9/lower_eth1": "../eth1"})
    assert (link(tmp_path), link(tmp_path, "br1")) == (20_000_000, 25_000_000)


def test_a_card_that_does_not_know_its_speed_and_a_bridge_that_is_not_there(tmp_path: Path) -> None:
    host(tmp_path, {f"{NET}/br0/brif/eth0/state": "3", f"{NET}/eth0/speed": "-1\n", f"{NET}/eth0/device/x": ""}, {})
    assert (link(tmp_path), link(tmp_path, "br9")) == (None, None)


def test_devices_that_a_guest_might_be_given(tmp_path: Path) -> None:
    pci = "sys/bus/pci/devices"
    files = {f"{pci}/{address}/{name}": text for address, *texts in (
        ("0000:00:02.0", "0x030000\n", "0x8086\n", "0x1234\n"), ("0000:3b:00.0", "0x030200\n", "0x10de\n", "0x20b0\n"),
        ("0000:00:1f.0", "0x060100\n", "0x8086\n", "0x0001\n"),
    ) for name, text in zip(("class", "vendor", "device"), texts)}  # fmt: skip
    host(tmp_path, files, {f"{pci}/0000:3b:00.0/driver": "../../drivers/vfio-pci",
                           f"{pci}/0000:3b:00.0/iommu_group": "../../../kernel/iommu_groups/12"})
    assert room.around([], tmp_path).devices == (
        Device("0000:00:02.0", "display", "0x8086", "0x1234"),
        Device("0000:3b:00.0", "3d", "0x10de", "0x20b0", "vfio-pci", 12),
    )
    assert room.around([], tmp_path / "elsewhere").devices is None


def test_the_processor_and_its_speed_where_somebody_says(tmp_path: Path) -> None:
    each = "processor\t: 0\nmodel name\t: An Example CPU @ 2.50GHz\ncpu MHz\t: 800.1\n\n"
    silent = room.around([], host(tmp_path / "a", {"proc/cpuinfo": each * 2}, {}))
    assert (silent.cpu_model, silent.cpu_mhz) == ("An Example CPU @ 2.50GHz", None), "800 MHz is what it idles at"
    bound = {"proc/cpuinfo": each, "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "3500000\n"}
    assert room.around([], host(tmp_path / "b", bound, {})).cpu_mhz == 3500
    assert room.around([], tmp_path / "elsewhere").cpu_model is None
