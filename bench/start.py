"""What proving a start costs: the adapter's way against libvirt's bare createXML, and a whole look at many guests.

    python -m bench.start [--rounds 10] [--guests 20]

As root, with libvirtd; guests are QEMU of 32 MiB without an operating system, made and removed here.  The two ways
take turns, so that the machine's mood meets both.  Adapter = define, start paused, read the limit back, write the tag,
resume; bare = createXML of the same guest without limit or tag.
"""

from __future__ import annotations

import argparse
import statistics
import time
import xml.etree.ElementTree as ElementTree

from tests.support import hypervisor, libvirtd
from vmagent.core import limits
from vmagent.core.actions import Do
from vmagent.core.domainxml import domain_xml
from vmagent.core.drivers import PROFILES


def adapter(rig: hypervisor.Rig) -> float:
    spec = rig.spec()
    began = time.perf_counter()
    rig.begin(spec)
    assert limits.cpu_holds(spec, rig.see(spec).cpu)
    rig.do(Do.RESUME, spec)
    took = time.perf_counter() - began
    rig.do(Do.DESTROY, spec)
    rig.do(Do.UNDEFINE, spec)
    return took


def bare(rig: hypervisor.Rig) -> float:
    spec = rig.spec()
    profile = PROFILES[rig.port.info().domain_type]
    paths = rig.disks.paths(spec)
    xml = domain_xml(spec, rig.tag(spec), profile, paths.overlay, paths.seed, paths.golden, limits.UNLIMITED)
    root = ElementTree.fromstring(xml)
    root.remove(root.find("metadata"))
    text = ElementTree.tostring(root, encoding="unicode")
    began = time.perf_counter()
    domain = rig.outside.conn.createXML(text, 0)
    took = time.perf_counter() - began
    domain.destroy()
    return took


def look(rig: hypervisor.Rig, guests: int) -> float:
    for _ in range(guests):
        rig.begin(rig.spec())
    rig.result(rig.port.observe_all())
    return statistics.median(timed(lambda: rig.result(rig.port.observe_all())) for _ in range(10))


def timed(call) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--guests", type=int, default=20)
    options = parser.parse_args()
    with libvirtd.isolated() as uri:
        rig = hypervisor.qemu(uri)
        try:
            rig.start()
            both = [(adapter(rig), bare(rig)) for _ in range(options.rounds)]
            ours, theirs = (statistics.median(column) for column in zip(*both))
            print(
                f"start, median of {options.rounds}: adapter {ours:.3f} s, bare createXML {theirs:.3f} s, "
                f"ratio {ours / theirs:.2f}"
            )
            whole = look(rig, options.guests)
            print(
                f"whole look at {options.guests} live guests: {whole * 1000:.1f} ms, "
                f"{whole * 1000 / options.guests:.2f} ms each"
            )
        finally:
            rig.end()


if __name__ == "__main__":
    main()
