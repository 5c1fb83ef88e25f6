"""What the host's kernel does for the agent, built: the parts of `host/` that look at it and act on it."""

from __future__ import annotations

from dataclasses import dataclass

from vmagent.core.policy import Policy
from vmagent.host.cgroups import HostCgroups
from vmagent.host.firewall import NftFirewall
from vmagent.host.processes import ProcProcesses
from vmagent.host.shaper import TcShaper
from vmagent.lanes import Lanes


@dataclass
class Kernel:
    """What the host's kernel does for us, beside what libvirt does."""

    firewall: NftFirewall
    shaper: TcShaper
    cgroups: HostCgroups
    processes: ProcProcesses


def kernel(policy: Policy, lanes: Lanes) -> Kernel:
    """Nothing is read or loaded yet."""
    processes = ProcProcesses()
    return Kernel(NftFirewall(policy.instance, lanes, policy.firewall), TcShaper(policy.instance, lanes),
                  HostCgroups(lanes, processes), processes)
