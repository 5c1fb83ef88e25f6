"""What one change of a guest's rules costs, and what holding all rules costs at rest, with 1, 100 and 500 guests.

    python -m bench.firewall [--guests 1 100 500] [--rounds 15]

As root, in the table of an instance of its own, which is removed at the end; no interface is needed for it.  Each guest
has thirty rules of its own.

    change     replace one guest's rules and read them back, beside the same transaction given to the nft program alone
    hold       the CPU time, children included, of one minute at rest as holding.py spends it (one question to the
               kernel every 5 s, one whole comparison a minute), as a share of one core

The last line is one JSON object, by number of guests: change_ms, nft_alone_ms (medians) and hold_cpu_percent.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import time
import uuid
from typing import Any, Callable, Dict, List

from tests.support import building
from tests.support.loop import RealLoop
from vmagent.core import identity
from vmagent.core.actions import Action, Do
from vmagent.core.model import Firewall, Limits, NicLimits, Rule, VmSpec
from vmagent.core.policy import SiteFirewall
from vmagent.host.firewall import NftFirewall
from vmagent.lanes import Lanes

INSTANCE = "vb"
TABLE = f"vmagent_{INSTANCE}"
HOLD_S, WHOLE_S = 5, 60
RULES = tuple(Rule("allow", "tcp", ((1000 + n, 1000 + n),), f"10.{n}.0.0/16") for n in range(15))


def guest(number: int, extra: int = 0) -> VmSpec:
    spec = building.spec(command=str(uuid.UUID(int=number)), cpu_cap_core_percent=None)
    address = f"198.18.{number // 200}.{1 + number % 200}/15"
    nic = building.interface(spec.vm, device=identity.device_name(INSTANCE, spec.vm, 0), addresses=(address,))
    firewall = Firewall(RULES, tuple(dataclasses.replace(rule, action="deny") for rule in RULES[extra:]))
    return dataclasses.replace(spec, interfaces=(nic,), limits=Limits(nics=(NicLimits(firewall=firewall),)))


def cpu_s() -> float:
    """Of this process and of every child that has ended."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def spent(call: Callable[[], Any]) -> float:
    before = cpu_s()
    call()
    return cpu_s() - before


def timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


class Rig:
    """The adapter under a loop of its own."""

    def __init__(self) -> None:
        self.loop = RealLoop()
        self.lanes = Lanes("nft", 1, self.loop)  # type: ignore[arg-type]
        self.firewall = NftFirewall(INSTANCE, self.lanes, SiteFirewall())

    def do(self, deferred: Any) -> Any:
        return self.loop.result(deferred, 120)

    def change(self, spec: VmSpec) -> None:
        self.do(self.firewall.perform(Action(Do.APPLY_FIREWALL, spec)))
        assert self.do(self.firewall.drift([spec]))[spec.vm] == ()

    def end(self) -> None:
        self.lanes.stop()


def nft_alone(number: int) -> None:
    """A transaction of the same size as a change, without any of our code."""
    chain = f"bench_{number}"
    lines = [f"add chain bridge {TABLE} {chain}", f"flush chain bridge {TABLE} {chain}"]
    lines += [f"add rule bridge {TABLE} {chain} ip saddr 10.{n}.0.0/16 tcp dport {1000 + n} accept" for n in range(30)]
    subprocess.run(["nft", "-f", "-"], input="\n".join([*lines, f"flush chain bridge {TABLE} {chain}",
                                                        f"delete chain bridge {TABLE} {chain}", ""]),
                   text=True, check=True)


def measure(count: int, rounds: int) -> Dict[str, float]:
    subprocess.run(["nft", "delete", "table", "bridge", TABLE], capture_output=True, check=False)
    rig = Rig()
    try:
        rig.do(rig.firewall.start())
        guests = [guest(number) for number in range(1, count + 1)]
        rig.do(rig.firewall.restore(guests))
        rig.do(rig.firewall.drift(guests))
        changes: List[float] = []
        alone: List[float] = []
        for turn in range(rounds):
            changes.append(timed(lambda: rig.change(guest(1, 1 + turn % 2))))  # noqa: B023
            alone.append(timed(lambda: nft_alone(1)))
            rig.do(rig.firewall.drift(guests[:1]))
        guests[0] = guest(1, 1 + (rounds - 1) % 2)
        rig.do(rig.firewall.drift(guests))
        whole = statistics.median(spent(lambda: rig.do(rig.firewall.drift(guests))) for _ in range(3))
        asked = spent(lambda: [rig.firewall.stale() for _ in range(1000)]) / 1000
    finally:
        rig.end()
        subprocess.run(["nft", "delete", "table", "bridge", TABLE], capture_output=True, check=False)
    hold = 100 * (asked / HOLD_S + whole / WHOLE_S)
    row = {"change_ms": 1000 * statistics.median(changes), "nft_alone_ms": 1000 * statistics.median(alone),
           "hold_cpu_percent": hold}
    print(f"{count:4} guests: one change with its proof {row['change_ms']:.1f} ms "
          f"(nft alone {row['nft_alone_ms']:.1f} ms), holding {hold:.2f} % of a core "
          f"(one comparison {1000 * whole:.0f} ms, one question {1e6 * asked:.0f} us)")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guests", type=int, nargs="+", default=[1, 100, 500])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    rows = {str(count): measure(count, options.rounds) for count in options.guests}
    names = ("change_ms", "nft_alone_ms", "hold_cpu_percent")
    print(json.dumps({name: {count: round(row[name], 3) for count, row in rows.items()} for name in names}))


if __name__ == "__main__":
    main()
