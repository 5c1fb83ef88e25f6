"""Domain XML: golden files per hypervisor (REGENERATE=1 writes them anew), libvirt's own schema, and the tag."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.support import building
from vmagent.core import quota
from vmagent.core.diskxml import DiskSource
from vmagent.core.domainxml import LONGEST_TAG, NAMESPACE, domain_xml, parts_of, read_tag, tag_xml
from vmagent.core.drivers import PROFILES
from vmagent.core.imagemodel import Boot, BootFile
from vmagent.core.model import CpuLimit, Disk, DiskIo, DiskSeen, ImageRef

DATA = Path(__file__).parent.parent / "data" / "domains"
OVERLAY, SEED, GOLDEN = "/var/lib/vmagent/overlays/a.qcow2", "/var/lib/vmagent/seeds/a.iso", "/srv/images/tiny.qcow2"
UNLIMITED = CpuLimit(100_000, -1)
SLOW = DiskIo(10_000_000, 5_000_000, 500, 250)


def two_nics(**kw):
    one = building.spec()
    nics = (building.interface(one.vm), building.interface(one.vm, 1, network="storage", bridge="br-st", mtu=9000))
    return building.spec(interfaces=nics, cores=2, **kw)


def xml_of(profile="kvm", spec=None, cpu=None, tag=None, overlay=OVERLAY, seed=SEED, golden=GOLDEN, cgroup=2):
    spec = spec or building.spec()
    tag = tag or building.tag(building.record(spec=spec))
    cpu = quota.cpu_limit(spec) if cpu is None else cpu
    return domain_xml(spec, tag, PROFILES[profile], overlay, seed, golden, cpu, cgroup, SOURCES[: len(spec.disks)],
                      *(("/srv/images/vmlinuz-6.1", "/srv/images/initrd-6.1") if spec.image.boot else ("", "")))


def booted(guest, **kw):
    """A spec of an image that names a kernel, unless told otherwise."""
    files = {"kernel": BootFile("vmlinuz-6.1", "cd" * 64), "initrd": BootFile("initrd-6.1", "ef" * 64)}
    boot = Boot(**{"guest": guest, **files, "cmdline": "root=/dev/xvda1 ro <quiet>", **kw})
    return building.spec(image=ImageRef("tiny", building.SHA512, "qcow2", boot=boot))


DISKS = (Disk("scratch", 2, 10), Disk("volume", 3, volume="data"), Disk("volume", 4, volume="ref", read_only=True),
         Disk("cdrom", 5, volume="tools", read_only=True))
READ_FIRST = tuple(dataclasses.replace(disk, place=place)
                   for disk, place in zip((*DISKS[2:], *DISKS[:2]), range(2, 6)))
SOURCES = (DiskSource("/o/scratch.raw", "raw"), DiskSource("/dev/vg/data", "raw", True),
           DiskSource("/srv/ref.qcow2", "qcow2"), DiskSource("/srv/tools.iso", "raw"))


CASES = {
    **{name: (name, building.spec() if row.firmware else booted(row.guest), None) for name, row in PROFILES.items()},
    "xen-pv-bootloader": ("xen-pv", booted("pv", kernel=None, initrd=None, cmdline=""), None),
    "xen-pvh-kernel-only": ("xen-pvh", booted("pvh", initrd=None, cmdline=""), None),
    "kvm-two-nics-no-cap": ("kvm", two_nics(cpu_cap_core_percent=None), None),
    "kvm-no-network": ("kvm", building.spec(interfaces=(), tags=()), None),
    "kvm-all-limits": ("kvm", building.spec(cpu_cap_core_percent=250, cpu_weight=300, disk_io=SLOW), None),
    "kvm-disks": ("kvm", building.spec(disks=DISKS, disk_io=SLOW), None),
    "xen-pv-disks": ("xen-pv", dataclasses.replace(booted("pv"), disks=DISKS), None),
    "xen-hvm-disks": ("xen-hvm", building.spec(disks=READ_FIRST), None),
    "qemu-awkward-text": ("qemu", building.spec(name="<&>\"'\u00e9\u4e2d\n]]>", tags=("</vma:vm>",)), None),
}


@pytest.mark.parametrize("name", CASES)
def test_golden_file(name):
    profile, spec, cpu = CASES[name]
    made = xml_of(profile, spec, cpu)
    golden = DATA / f"{name}.xml"
    if os.environ.get("REGENERATE") == "1":
        golden.write_text(made, encoding="utf-8")
    assert made == golden.read_text(encoding="utf-8")


def test_no_golden_file_without_its_case():
    assert {path.stem for path in DATA.glob("*.xml")} == set(CASES)


@pytest.mark.skipif(not shutil.which("virt-xml-validate"), reason="virt-xml-validate is not installed")
@pytest.mark.parametrize("name", CASES)
def test_libvirts_own_schema_takes_it(name):
    done = subprocess.run(
        ["virt-xml-validate", str(DATA / f"{name}.xml"), "domain"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_golden_image_is_named_in_the_chain_and_never_handed_over():
    backing = ElementTree.fromstring(xml_of()).find("devices/disk/backingStore")
    assert backing.find("source").get("file") == GOLDEN
    assert backing.find("source/seclabel").attrib == {"model": "dac", "relabel": "no"}
    assert backing.find("format").get("type") == "qcow2"
    assert len(backing.find("backingStore")) == 0, "the chain ends there: libvirt must not probe further"


@pytest.mark.parametrize("profile", PROFILES)
def test_nothing_but_the_overlay_is_writable(profile):
    disks = ElementTree.fromstring(xml_of(profile, booted("pvh"))).findall("devices/disk")
    writable = [d.find("source").get("file") for d in disks if d.find("readonly") is None]
    assert writable == ([OVERLAY] if PROFILES[profile].read_only_below else [OVERLAY, SEED])


@pytest.mark.parametrize(("kind", "spec"), [("xen-pvh", booted("pvh")), ("xen-hvm", building.spec())])
def test_a_volume_that_such_a_guest_would_not_find_is_refused(kind, spec):
    """Not given silently, and not given to be written."""
    with pytest.raises(ValueError, match=f"ref: a guest of kind {kind} can have none there that can only be read"):
        xml_of(kind, dataclasses.replace(spec, disks=DISKS[:3]))


@pytest.mark.parametrize(("ports", "wanted"), [(True, 4 + 8 + 2), (False, 0)])
def test_ports_for_every_disk_that_may_be_attached_later(ports, wanted):
    spec = two_nics()
    tag = building.tag(building.record(spec=spec))
    profile = dataclasses.replace(PROFILES["kvm"], ports=ports)
    made = domain_xml(spec, tag, profile, OVERLAY, SEED, GOLDEN, UNLIMITED, 2)
    assert len(ElementTree.fromstring(made).findall("devices/controller[@model='pcie-root-port']")) == wanted


@pytest.mark.parametrize("profile", ["kvm", "qemu"])
def test_the_cap_is_in_the_definition_before_anything_runs(profile):
    tune = ElementTree.fromstring(xml_of(profile)).find("cputune")
    assert {e.tag: e.text for e in tune} == {"shares": "100", "global_period": "100000", "global_quota": "50000"}


@pytest.mark.parametrize("profile", ["test", "xen-pv", "xen-pvh", "xen-hvm"])
def test_no_cputune_where_the_driver_has_no_quota(profile):
    assert ElementTree.fromstring(xml_of(profile, booted("pv"))).find("cputune") is None


def test_a_kernel_from_outside_only_where_no_firmware_boots_the_disk():
    for name, row in PROFILES.items():
        root = ElementTree.fromstring(xml_of(name, booted("pvh")))
        assert (root.findtext("os/kernel") is None) is row.firmware
        assert (root.find("os/boot") is not None) is row.firmware
        assert root.find("bootloader") is None, "an image that names its kernel needs nobody to look for one"


def test_where_pygrub_is_forbidden_an_image_without_a_kernel_cannot_be_started():
    forbidden = dataclasses.replace(PROFILES["xen-pv"], bootloader="")
    spec = booted("pv", kernel=None, initrd=None)
    tag = building.tag(building.record(spec=spec))
    with pytest.raises(ValueError, match="tiny names no kernel"):
        domain_xml(spec, tag, forbidden, OVERLAY, SEED, GOLDEN, UNLIMITED, 2)


def test_without_a_cap_there_is_no_quota_but_a_weight():
    tune = ElementTree.fromstring(xml_of(cpu=UNLIMITED)).find("cputune")
    assert {e.tag: e.text for e in tune} == {"shares": "100"}


@pytest.mark.parametrize("cgroup,shares", [(1, "3072"), (2, "300")])
def test_the_weight_is_said_in_the_kernels_own_number(cgroup, shares):
    made = xml_of(spec=building.spec(cpu_weight=300), cgroup=cgroup)
    assert ElementTree.fromstring(made).findtext("cputune/shares") == shares


def test_the_overlay_is_limited_and_the_seed_is_not():
    first, second = ElementTree.fromstring(xml_of(spec=building.spec(disk_io=SLOW))).findall("devices/disk")
    assert {e.tag: e.text for e in first.find("iotune")} == {
        "read_bytes_sec": "10000000", "write_bytes_sec": "5000000", "read_iops_sec": "500", "write_iops_sec": "250",
    }  # fmt: skip
    assert second.find("iotune") is None
    only = ElementTree.fromstring(xml_of(spec=building.spec(disk_io=DiskIo(write_ops_per_s=7)))).find(".//iotune")
    assert {e.tag: e.text for e in only} == {"write_iops_sec": "7"}
    assert ElementTree.fromstring(xml_of()).find(".//iotune") is None
    assert ElementTree.fromstring(xml_of("xen-hvm", building.spec(disk_io=SLOW))).find(".//iotune") is None


@pytest.mark.parametrize("bad", ["a\x00b", "a\nb", "a\x1fb", "a\ud800b", "a\ufffeb"])
@pytest.mark.parametrize("where", ["overlay", "seed", "golden", "bridge"])
def test_what_xml_cannot_carry_is_refused(bad, where):
    if where == "bridge":
        spec = building.spec(interfaces=(building.interface(building.spec().vm, bridge=bad),))
        with pytest.raises(ValueError, match="not allowed in XML"):
            xml_of(spec=spec)
        return
    with pytest.raises(ValueError, match="not allowed in XML"):
        xml_of(**{where: bad})


def test_a_path_that_looks_like_xml_stays_a_path():
    evil = "/x'/><emulator>/bin/sh</emulator><y a='"
    root = ElementTree.fromstring(xml_of(overlay=evil))
    assert root.find("devices/disk/source").get("file") == evil
    assert root.find(".//emulator") is None


def test_what_was_written_is_read():
    spec = two_nics(disk_io=SLOW)
    parts = parts_of(kib(xml_of(spec=spec)))
    assert parts.devices == tuple(i.device for i in spec.interfaces)
    assert (parts.disks, parts.writable, parts.disk_io) == (("vda", "vdb"), ("vda",), SLOW)
    assert parts.seen == (DiskSeen("vda", ""), DiskSeen("vdb", "", True))
    assert (parts.memory_mib, parts.memory_max_mib) == (512, 512)
    assert parts_of(kib(xml_of())).disk_io == DiskIo()
    assert parts_of(kib(xml_of(spec=building.spec(disks=DISKS)))).seen[2:] == (
        DiskSeen("vdc", "scratch-c"), DiskSeen("vdd", "data"), DiskSeen("vde", "ref", True),
        DiskSeen("sdf", "tools", True),
    )  # fmt: skip
    for odd in ("<domain>", "", "<domain/>", "<domain><memory>much</memory></domain>"):
        with pytest.raises(ValueError, match="not a domain"):
            parts_of(odd)


def kib(xml):
    """As libvirt says it."""
    return xml.replace('unit="MiB">512', 'unit="KiB">524288')


MEMORY = [
    ("<currentMemory unit='KiB'>524288</currentMemory>", 512, 512),
    ("", 512, 512),
    ("<currentMemory unit='KiB'>262144</currentMemory>", 256, 512),
    ("<maxMemory slots='4' unit='KiB'>1048576</maxMemory>", 512, 1024),
    ("<currentMemory unit='KiB'>524287</currentMemory>", 511, 512),
    ("<maxMemory slots='4' unit='KiB'>524289</maxMemory>", 512, 513),
]


@pytest.mark.parametrize("said,now,most", MEMORY)
def test_memory_that_could_grow_or_is_less_is_seen(said, now, most):
    parts = parts_of(f"<domain><memory unit='KiB'>524288</memory>{said}</domain>")
    assert (parts.memory_mib, parts.memory_max_mib) == (now, most)


def disk(tune, more=""):
    return f"<disk><target dev='vda'/>{more}<iotune>{tune}</iotune></disk>"


LAST = DiskIo(None, None, None, 7)
IO = [
    (disk("<read_bytes_sec>5</read_bytes_sec>"), DiskIo(5)),
    (disk("<read_bytes_sec>5</read_bytes_sec><read_bytes_sec_max>9</read_bytes_sec_max>"), DiskIo(9)),
    (disk("<read_bytes_sec_max>9</read_bytes_sec_max>"), DiskIo()),
    (disk("<total_bytes_sec>5</total_bytes_sec><group_name>x</group_name>"), DiskIo()),
    (disk("<write_iops_sec>5</write_iops_sec>") + disk("<write_iops_sec>7</write_iops_sec>"), LAST),
    (disk("<write_iops_sec>5</write_iops_sec>") + disk(""), DiskIo()),
    (disk("<write_iops_sec>5</write_iops_sec>") + disk("", "<readonly/>"), DiskIo(None, None, None, 5)),
    ("", DiskIo()),
]


@pytest.mark.parametrize("disks,limits", IO)
def test_the_loosest_disk_is_what_holds(disks, limits):
    assert parts_of(f"<domain><memory>1024</memory><devices>{disks}</devices></domain>").disk_io == limits


# -- the tag


def test_the_tag_comes_back_whole():
    choice = random.Random(7)
    letters = "aZ9 <>&'\"]\n\t\u00e9\u4e2d\U0001f600"
    for _ in range(200):
        word = "".join(choice.choice(letters) for _ in range(choice.randrange(30)))
        spec = building.spec(
            name=word, tags=(word, "x"), cores=choice.randrange(1, 65), interfaces=two_nics().interfaces
        )
        tag = building.tag(spec and building.record(spec=spec), started_at=choice.choice([None, 12.5, 7]))
        assert read_tag(tag_xml(tag)) == tag
        inside = ElementTree.fromstring(xml_of(spec=spec, tag=tag)).find(f"metadata/{{{NAMESPACE}}}vm")
        assert read_tag(ElementTree.tostring(inside, encoding="unicode")) == tag


def test_the_name_space_is_libvirts_to_add_and_to_drop():
    tag = building.tag()
    assert ElementTree.fromstring(tag_xml(tag)).tag == "vm"
    named = tag_xml(tag).replace("<vm>", f'<vma:vm xmlns:vma="{NAMESPACE}">').replace("</vm>", "</vma:vm>")
    assert read_tag(named) == tag


def odd_tags():
    def changed(**kw):
        raw = json.loads(ElementTree.fromstring(tag_xml(building.tag())).text)
        for path, value in kw.items():
            place = raw
            *parents, last = path.split("__")
            for parent in parents:
                place = place[parent]
            place[last] = value
        element = ElementTree.Element("vm")
        element.text = json.dumps(raw)
        return ElementTree.tostring(element, encoding="unicode")

    good = ElementTree.tostring(
        ElementTree.fromstring(xml_of()).find(f"metadata/{{{NAMESPACE}}}vm"), encoding="unicode"
    )
    return {
        "empty": "",
        "no xml": "<vm",
        "other element": good.replace("vma:vm", "vma:wm"),
        "other name space": good.replace("/domain/1", "/domain/2"),
        "children": "<vm><x/></vm>",
        "no json": "<vm>hello</vm>",
        "json of another kind": "<vm>[1]</vm>",
        "nothing in it": "<vm>{}</vm>",
        "a doctype": "<!DOCTYPE vm [<!ENTITY a 'b'>]><vm>&a;</vm>",
        "too long": "<vm>" + " " * LONGEST_TAG + "</vm>",
        "too deep": "<vm>" + "[" * 30000 + "</vm>",
        "a generation in words": changed(generation="one"),
        "true as a number": changed(spec__cores=True),
        "an unknown member": changed(colour="red"),
        "an unknown member of the spec": changed(spec__colour="red"),
        "no uuid": changed(spec__vm="../../etc"),
        "a uuid in another form": changed(spec__vm=building.spec().vm.upper()),
        "a spec that is text": changed(spec="x"),
        "no image": changed(spec__image=None),
    }


@pytest.mark.parametrize("name", odd_tags())
def test_odd_tags_are_refused(name):
    with pytest.raises(ValueError):
        read_tag(odd_tags()[name])


def test_only_what_is_ours_changes_its_owner_and_only_what_is_written_is_limited():
    """FACTS F19: a volume's source carries relabel=no; a chain's end is written out, so nobody probes for one."""
    root = ElementTree.fromstring(xml_of(spec=building.spec(disks=DISKS, disk_io=SLOW)))
    rows = {disk.find("target").get("dev"): disk for disk in root.iterfind("devices/disk")}
    assert list(rows) == ["vda", "vdb", "vdc", "vdd", "vde", "sdf"]
    assert {name for name, disk in rows.items() if disk.get("snapshot") == "no"} == {"vdc", "vdd", "vde", "sdf"}
    kept = {name for name, disk in rows.items() if disk.find("source/seclabel[@relabel='no']") is not None}
    assert kept == {"vdd", "vde", "sdf"}
    assert all(rows[name].find("backingStore") is not None for name in kept)
    assert {name for name, disk in rows.items() if disk.find("iotune") is not None} == {"vda", "vdc", "vdd"}
    assert {name for name, disk in rows.items() if disk.find("readonly") is not None} == {"vdb", "vde", "sdf"}
    assert [disk.findtext("serial") for disk in rows.values()] == [None, None, "scratch-c", "data", "ref", "tools"]
