"""A command as a value, and the table of verbs that feeds parser, authority, docs and command-line help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Mapping, Optional, Tuple

from vmagent.core.model import Owner

Rdns = Tuple[Tuple[Tuple[str, str], ...], ...]  # ((("DC","org"),), (("CN","a"),)), most significant (DC/C) first


@dataclass(frozen=True)
class Signer:
    """Who asks.  `subject` in RFC 4514; `rdns` for comparison; `thumbprint` = SHA-256 (hex) of the certificate's DER.

    On the local socket: subject "local:<user>", no rdns, thumbprint "".
    """

    subject: str
    rdns: Rdns = ()
    thumbprint: str = ""

    @property
    def local(self) -> bool:
        return self.subject.startswith("local:")


@dataclass(frozen=True)
class Command:
    """One parsed, schema-valid command (PROTOCOL 3)."""

    id: str
    verb: str  # "vm.start"
    schema: str  # "vm.start/1"
    issued_wall: str
    valid_until_wall: str
    target: str
    reply_to: str  # "" = the default
    owner: Optional[Owner]
    if_generation: Optional[int]
    reason: str
    args: Mapping[str, Any]
    digest: str
    signer: Signer
    route: str  # "broker" | "local"


@dataclass(frozen=True)
class Verb:
    """One row of the table of verbs."""

    name: str
    title: str
    selects: bool = False  # takes a selector of VMs
    changes: bool = True  # False: only looks
    topic: bool = False  # also accepted from the topic to every host
    anew: bool = False  # begins a fresh life from the golden image, which must be trusted then
    everybody: bool = False  # it concerns everybody's VMs: only a row whose scope is `all` grants it


VERBS: Mapping[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb("vm.start", "start one VM, or `count` of them"),
        Verb("vm.stop", "end VMs: ACPI, repeated, then destroy after the grace time", selects=True),
        Verb("vm.kill", "end VMs at once", selects=True),
        Verb("vm.reboot", "ask VMs to reboot", selects=True),
        Verb("vm.restart", "make VMs anew from their golden images, within their leases", selects=True, anew=True),
        Verb("vm.revert", "throw away what VMs wrote: back to their golden images, or to a snapshot", selects=True,
             anew=True),
        Verb("vm.pause", "stop the vCPUs of VMs; the lease goes on", selects=True),
        Verb("vm.resume", "let paused VMs run again", selects=True),
        Verb("vm.attach", "attach a data volume to running VMs", selects=True),
        Verb("vm.detach", "take a data volume away from running VMs", selects=True),
        Verb("vm.extend", "change the agreed run time of VMs", selects=True),
        Verb("vm.limits", "change the limits of running VMs", selects=True),
        Verb("vm.snapshot", "take a snapshot of VMs", selects=True),
        Verb("vm.snapshot.list", "the snapshots of VMs", selects=True, changes=False),
        Verb("vm.snapshot.delete", "delete a snapshot of VMs: its layer goes into the one below", selects=True),
        Verb("vm.snapshot.cancel", "stop taking a snapshot of VMs, and undo it", selects=True),
        Verb("vm.query", "who runs what", selects=True, changes=False),
        Verb("capacity.query", "how many such VMs can start here, now and later, and why not more", changes=False,
             topic=True),
        Verb("image.list", "the images that this host knows, and whether they are trusted", changes=False),
        Verb("image.fetch", "have an image fetched into this host's cache"),
        Verb("image.evict", "remove an image's file from this host's cache", everybody=True),
        Verb("image.pin", "keep an image's file in this host's cache, whatever room is needed", everybody=True),
        Verb("image.unpin", "take a pin away", everybody=True),
        Verb("image.revoke", "say that an image is not to be trusted any more", topic=True, everybody=True),
        Verb("host.report", "publish the whole truth again", changes=False, topic=True),
        Verb("host.drain", "refuse new VMs"),
        Verb("host.undrain", "accept new VMs again"),
    )
}
