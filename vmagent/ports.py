"""Every outside thing, as the reconciler and the intake see it.

Each Protocol has one contract suite (tests/contract) that the real thing and its fake both pass.
A method that returns a Deferred never blocks the reactor; its failure is a Fault or a Problem, nothing else.
Only frozen values cross: no virDomain, no STOMP frame, no database row.
"""

from __future__ import annotations

from typing import Any, Callable, FrozenSet, Mapping, Optional, Protocol, Sequence, Tuple

from twisted.internet.defer import Deferred

from vmagent.core.actions import Action
from vmagent.core.adopting import Candidate
from vmagent.core.changes import Change, CommandRow, Epoch, OutboxRow, Stored
from vmagent.core.commands import Signer
from vmagent.core.context import Context
from vmagent.core.imagemodel import Download, ImageFile
from vmagent.core.model import (
    CgroupSeen,
    DomainSeen,
    Drift,
    FirewallInfo,
    HostSeen,
    HypervisorInfo,
    ImageRef,
    NicCounters,
    Now,
    ShaperInfo,
    VmRecord,
    VmSpec,
)
from vmagent.core.policy import SiteFirewall
from vmagent.core.request import Envelope
from vmagent.core.samples import HostSample, Sample
from vmagent.core.snapshotmodel import JobDone
from vmagent.core.usagemodel import UsageRow


class Verifier(Protocol):
    """Who signed a command.  Pure computation on trust that was read before; quick enough for the reactor."""

    def verify(self, envelope: Envelope, now_s: float) -> Tuple[bytes, Signer]:
        """The payload's bytes and the signer.  Problems: signature, algorithm, certificate-*, crl-*, ..."""

    def unsigned(self) -> Signer:
        """Who speaks when the broker's login alone is trusted (security.commands: broker)."""


class Clock(Protocol):
    """The three clocks, read together."""

    def now(self) -> Now: ...


class Hypervisor(Protocol):
    """libvirt, or the fake that passes the same suite."""

    def start(self, on_hint: Callable[[Optional[str]], None], on_connection: Callable[[bool], None]) -> None:
        """Connect and stay connected.  Both callbacks run on the reactor.

        on_hint(vm id) = "look at this one again", on_hint(None) = "look at everything"; on_connection(up).
        """

    def stop(self) -> Deferred[None]:
        """Close everything that can be closed; stuck calls are left to their daemon threads."""

    def info(self) -> HypervisorInfo: ...

    def observe_all(self) -> Deferred[HostSeen]:
        """One whole look.  Faults: AWAY."""

    def observe(self, vm: str) -> Deferred[DomainSeen]:
        """One domain; MISSING only on libvirt's word from a healthy connection.  Faults: AWAY, UNKNOWN."""

    def candidate(self, vm: str) -> Deferred[Candidate]:
        """What must be known of a domain before it is adopted.  Faults: AWAY, UNKNOWN, GONE."""

    def perform(self, action: Action) -> Deferred[None]:
        """Do it, idempotently.  Faults: AWAY, UNKNOWN (deadline), GONE, BUSY, REFUSED.

        On a domain that is not ours every action but DEFINE is REFUSED, with two exceptions.  CLAIM makes one ours that
        runs and has no tag; UNTAG leaves one alone that has none.
        """

    def stuck(self) -> FrozenSet[str]:
        """VM ids with a monitor call past its deadline, or a QEMU seen twice in state T or D."""


class Jobs(Protocol):
    """Long jobs on guests, beside the loop's steps: one per VM, few at once."""

    def run(self, action: Action) -> Deferred[JobDone]:
        """TAKE_SNAPSHOT, DELETE_SNAPSHOT, idempotently: the live chain decides.

        Faults: AWAY, BUSY, GONE (it does not run), REFUSED, FULL; UNKNOWN: past its deadline or aborted.
        """

    def abort(self, vm: str) -> None:
        """End the job of this VM, if there is one: it fails with UNKNOWN, and the chain is whole."""

    def percent(self, vm: str) -> Optional[int]:
        """How far its job is, 0 to 100; None = there is none."""


class Images(Protocol):
    """Golden images and their downloads, overlays and seeds on the local disk."""

    def perform(self, action: Action) -> Deferred[None]:
        """FETCH_IMAGE, MAKE_OVERLAY, MAKE_SEED, CLEAN_UP (layers too), CUT_BACK, MAKE_LAYER.

        Faults: REFUSED (image wrong), FULL, UNKNOWN, BUSY.
        FETCH_IMAGE asks for a download and is done then; the VM waits for it ("download" in `leftovers`) until it is
        over, which `start`'s callback tells, or until CLEAN_UP.  Asked again after it failed, it fails with the reason
        of that, once: REFUSED or FULL for good, else asked once more it goes on where it stopped.
        """

    def here(self, image: ImageRef) -> bool:
        """Whether MAKE_OVERLAY would find its file.  Quick: from memory."""

    def files(self) -> Deferred[Tuple[ImageFile, ...]]:
        """What the cache holds, by SHA-512.  Faults: REFUSED."""

    def fetch(self, who: str, image: ImageRef) -> None:
        """FETCH_IMAGE for a wish that is no VM's; `who` is its id.  It is told and asks again as a VM is, and waits
        until `give_up`.  Quick.  Faults: REFUSED, FULL, BUSY, each when it asks again.
        """

    def give_up(self, who: str) -> None:
        """This wish wants nothing any more.  Quick."""

    def downloads(self) -> Tuple[Download, ...]:
        """Those that are under way, and those that wait for their turn.  Quick."""

    def evict(self, sha512: str) -> Deferred[None]:
        """Remove a file from the cache.  Faults: GONE (no such file), BUSY (an overlay or a wish needs it)."""

    def leftovers(self) -> Deferred[Mapping[str, FrozenSet[str]]]:
        """For each VM id with files here, "overlay", "scratch", "layer:NAME" (of a snapshot), "seed", "download"."""

    def free_gib(self) -> Deferred[int]:
        """Free space where overlays live, in GiB, rounded down."""

    def used(self) -> Deferred[Mapping[str, int]]:
        """For each VM id with disks here, the bytes that they take now: overlay, scratch disks, snapshots' layers."""

    def paths(self, vm: str) -> Tuple[str, str]:
        """(overlay, seed): where they are or would be."""


class Firewall(Protocol):
    """The kernel's packet filter: who may say what to whom, and counters of it all.  Ours is one table, no other."""

    def start(self) -> Deferred[None]:
        """Find out what the kernel can do and put the default drop for our prefix in force.  Faults: REFUSED, UNKNOWN;
        may be called again."""

    def info(self) -> FirewallInfo: ...

    def adopt(self, site: SiteFirewall) -> None:
        """The site's rules from now on; what is in force differs from them until `restore`."""

    def perform(self, action: Action) -> Deferred[None]:
        """APPLY_FIREWALL, WATCH_NETWORK, REMOVE_FIREWALL.  Faults: REFUSED (with the kernel's words), UNKNOWN."""

    def drift(self, specs: Sequence[VmSpec]) -> Deferred[Mapping[str, Tuple[Drift, ...]]]:
        """vm -> what differs from the wish in the kernel ("firewall"); () = proven.  Faults: UNKNOWN."""

    def stale(self) -> bool:
        """Whether anything may have changed since the last `drift`.  Quick: one netlink message."""

    def restore(self, specs: Sequence[VmSpec]) -> Deferred[None]:
        """All of these VMs' rules, in one transaction.  Faults: REFUSED, UNKNOWN."""

    def watched(self) -> Deferred[Mapping[str, int]]:
        """device -> frames seen from an assigned source address since it is watched.  Faults: UNKNOWN."""

    def counters(self) -> Deferred[Mapping[str, NicCounters]]:
        """device -> its counters, those of interfaces that are gone included.  Faults: UNKNOWN."""

    def devices(self) -> Deferred[FrozenSet[str]]:
        """The interfaces that have rules of ours, whether they exist or not.  Faults: UNKNOWN."""

    def forget(self, devices: Sequence[str]) -> Deferred[None]:
        """Remove rules and counters of these.  Faults: REFUSED (not ours), UNKNOWN."""

    def close(self, devices: Sequence[str]) -> Deferred[None]:
        """Drop all that these say and hear from now on, until their rules are applied or restored: `drift` tells it.
        Counters stay.  Faults: REFUSED (not ours), UNKNOWN."""

    def nudge(self, bridge: str, addresses: Sequence[str]) -> None:
        """Make the kernel ask for these neighbours, so that a silent guest answers.  Never fails."""


class Shaper(Protocol):
    """Bandwidth on the guests' interfaces, and the state of their bridge ports."""

    def start(self) -> Deferred[None]:
        """Find out which qdiscs there are, by trying.  Never fails: `info` says what was found."""

    def info(self) -> ShaperInfo: ...

    def perform(self, action: Action) -> Deferred[None]:
        """SHAPE, UNSHAPE, ISOLATE, REJOIN.  Faults: REFUSED (with the kernel's words), UNKNOWN."""

    def drift(self, specs: Sequence[VmSpec]) -> Deferred[Mapping[str, Tuple[Drift, ...]]]:
        """vm -> what differs on its live interfaces ("bandwidth", "port", "isolated", "missing"); () = proven.

        Faults: UNKNOWN.
        """

    def stale(self) -> bool:
        """Whether a qdisc or link of ours may have changed since the last `drift`.  Quick: what netlink told."""

    def devices(self) -> Deferred[FrozenSet[str]]:
        """Interfaces of ours that no guest uses (no carrier, or made for shaping).  Faults: UNKNOWN."""

    def forget(self, devices: Sequence[str]) -> Deferred[None]:
        """Remove these.  Faults: REFUSED (not ours, or in use), UNKNOWN."""


class Sweepable(Protocol):
    """What the sweep needs of both."""

    def forget(self, devices: Sequence[str]) -> Deferred[None]: ...


class Cgroups(Protocol):
    """The guests' cgroups, beside what libvirt says of them."""

    def seen(self, vms: Sequence[str]) -> Mapping[str, CgroupSeen]:
        """Those that have one.  Quick, local."""

    def overheads(self, memory_mib: Mapping[str, int]) -> Mapping[str, int]:
        """vm -> MiB that its QEMU takes beside the guest's own memory (given by vm).  Local; not for every second."""

    def perform(self, action: Action) -> Deferred[None]:
        """TELL_SYSTEMD.  Faults: REFUSED, UNKNOWN, GONE."""


class Meter(Protocol):
    """What guests and the host use, seen from outside."""

    def fine(self, vms: Sequence[str]) -> Deferred[Mapping[str, Sample]]:
        """Without the QEMU monitor; `disk` is as last read by `coarse`.  A guest that has no process is absent.  Never
        fails."""

    def coarse(self, vms: Sequence[str]) -> Deferred[None]:
        """Read what only the monitor tells; a guest that is sick is left out and keeps what it had.  Never fails.

        May be asked again while it is under way: of a guest whose answer is awaited nothing more is asked."""

    def host(self) -> HostSample:
        """Quick, local."""


class Processes(Protocol):
    """The host's process and interface tables."""

    def leftovers(self, vm: str, devices: Sequence[str]) -> FrozenSet[str]:
        """Of "process" (a QEMU with this uuid) and "interface" (one of these devices exists).  Quick, local."""

    def present(self, devices: Sequence[str]) -> FrozenSet[str]:
        """Those of these interfaces that exist.  Quick, local."""

    def plugged(self, devices: Sequence[str]) -> bool:
        """Whether each of these interfaces is in a bridge.  Quick, local."""

    def halted(self, vms: Sequence[str]) -> FrozenSet[str]:
        """Those whose QEMU main thread is in state T or D right now."""


class Store(Protocol):
    """The durable state.  One transaction per commit, all or nothing."""

    def open(self, now: Now) -> Deferred[Stored]:
        """Open or make, migrate, decide the epoch.  A corrupt file is set aside and told in `Epoch.cause`."""

    def close(self) -> Deferred[None]: ...

    def commit(self, changes: Sequence[Change]) -> Deferred[None]:
        """Faults: FULL, BUSY, REFUSED: nothing of it is stored.  UNKNOWN (a deadline, a disk error): all of it or
        nothing is, perhaps only later; commit again, for records, commands and settings are idempotent."""

    def command(self, id: str) -> Deferred[Optional[CommandRow]]: ...

    def context(self, command: str) -> Deferred[Optional[Context]]:
        """What this start gave its guests; None: nothing, or its last VM is closed.  For seeds only: it is secret."""

    def records(self, handle: str) -> Deferred[Tuple[VmRecord, ...]]:
        """By VM id, tag or command id, closed ones included: what was started under that handle (M9)."""

    def audit(self, limit: int, subject: str) -> Deferred[Tuple[Mapping[str, Any], ...]]:
        """Newest first; subject "" = all."""

    def outbox(self, after: int, limit: int) -> Deferred[Tuple[OutboxRow, ...]]:
        """Rows above `after`, oldest first."""

    def delivered(self, rows: Sequence[int]) -> Deferred[None]:
        """The broker's receipts came: forget these rows."""

    def sequences(self) -> Deferred[Mapping[str, int]]:
        """Last sequence given out per stream, in this epoch."""

    def epoch(self) -> Epoch: ...

    def usage(
        self, after: int, limit: int, vm: str = "", since: str = "", until: str = ""
    ) -> Deferred[Tuple[UsageRow, ...]]:
        """Closed periods with rows above `after`, oldest first; of this VM; that overlap this time (wall texts)."""

    def exported(self) -> Deferred[Mapping[str, int]]:
        """Who exports usage -> the row up to which he did, as MarkExported said."""

    def prune(self, now: Now, usage_days: int = 400, exporters: Sequence[str] = ()) -> Deferred[int]:
        """Forget what is past its time: audit and closed VMs after 400 days, finished commands once no replay of
        them can be fresh, periods of usage after `usage_days` once all of these have exported them.  Once a day will
        do.  How many rows that was."""


class Outbox(Protocol):
    """Who sends what the store holds."""

    def wake(self) -> None:
        """Something was committed."""


class Feed(Protocol):
    """Live views of what was committed, for the local socket."""

    def publish(self, changes: Sequence[Change]) -> None: ...
