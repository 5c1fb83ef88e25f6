"""The controller's side of the wire: send signed commands, match replies, keep the view of the fleet.

Rules
  - A command is signed once; every retry sends the identical bytes, so the agent acts once and answers each time with
    the stored reply.  It is sent again while it is valid and unanswered, and, more seldom, until the last reply came:
    a lost reply costs time, never a second effect.
  - VM ids are known before anything is sent (core/identity.py).
  - Replies are matched by command id and nothing else.  One that nobody here waits for is acknowledged and counted:
    another controller on the same queue gets its own by repeating.
  - Events are counted (collector.py), duplicates dropped, the newest states kept (fleet.py).
All calls on the reactor's thread; nothing blocks.  See docs/controller-library.md.
"""

from __future__ import annotations

import json
import logging
import uuid
from random import Random
from typing import Any, Callable, Dict, List, Mapping, Optional, Protocol, Sequence, Tuple

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from vmagent.broker import signing
from vmagent.broker.client import BrokerLink, Frame, LinkState, Subscription
from vmagent.broker.profiles import PROFILES
from vmagent.core import identity, strictjson, walltime
from vmagent.core.commands import VERBS
from vmagent.core.model import Owner
from vmagent.errors import Fault, FaultKind, Problem
from vmagent.site.collector import Collector
from vmagent.site.fleet import Fleet
from vmagent.site.handle import Handle, problem_of
from vmagent.site.settings import LARGEST_EVENT_KIB, Site

log = logging.getLogger("vmagent.site")
VALID_S = 3600
FIRST_RETRY_S = 5.0
LONGEST_RETRY_S = 60.0
EVERY_HOST = "*"

Event = Mapping[str, Any]
Watcher = Callable[[Event], None]


class Link(Protocol):
    """What is needed of broker.client.BrokerLink."""

    def start(self) -> None: ...

    def stop(self) -> Deferred[None]: ...

    def send(
        self, destination: str, body: bytes, headers: Mapping[str, str], expires_s: Optional[float] = None
    ) -> Deferred[None]: ...

    def ack(self, frame: Frame) -> None: ...


OpenLink = Callable[[Sequence[Subscription], Callable[[Frame], None], Callable[[LinkState], None]], Link]


class _Sent:
    """A command that waits for its last reply."""

    def __init__(self, handle: Handle, destination: str, body: bytes, until_s: float) -> None:
        self.handle = handle
        self.destination = destination
        self.body = body
        self.until_s = until_s  # wall time
        self.retry_s = FIRST_RETRY_S
        self.timer: Any = None


class Controller:
    """One controller.  wall_s: the wall clock, seconds since 1970; reactor: Twisted's.

    `collector` and `fleet` hold what the events said; `link` tells whether the broker is there.
    """

    def __init__(
        self,
        site: Site,
        reactor: Any,
        wall_s: Callable[[], float],
        random: Optional[Random] = None,
        open_link: Optional[OpenLink] = None,
        collector: Optional[Collector] = None,
    ) -> None:
        self._site = site
        self._reactor = reactor
        self._wall_s = wall_s
        self._random = random or Random()
        self._waiting: Dict[str, _Sent] = {}
        self._watchers: List[Watcher] = []
        self._connecting: List[Deferred[None]] = []
        self._last_issued_s = 0.0
        self.collector = collector or Collector()
        self.fleet = Fleet()
        self.strays = 0  # replies that nobody here waits for
        self.malformed = 0  # frames that are neither events nor replies
        self.failures = 0  # exceptions of watchers
        self.link = LinkState()
        opened = open_link or self._broker_link
        self._link = opened(self._subscriptions(), self._frame, self._state)

    def _broker_link(
        self,
        subscriptions: Sequence[Subscription],
        on_frame: Callable[[Frame], None],
        on_state: Callable[[LinkState], None],
    ) -> Link:
        profile = PROFILES[self._site.broker.profile]
        return BrokerLink(self._site.broker, profile, self._reactor, self._wall_s, self._random, subscriptions,
                          on_frame, on_state)

    def _subscriptions(self) -> Sequence[Subscription]:
        name = self._site.subscription
        return (
            Subscription("replies", self._site.replies),
            Subscription(name or "events", self._site.broker.events, durable=bool(name)),
        )

    # -- the link

    def connect(self) -> Deferred[None]:
        """Connect and stay connected.  Fires when the broker has confirmed the subscriptions for the first time."""
        connected: Deferred[None] = Deferred(self._connecting.remove)
        self._connecting.append(connected)
        self._link.start()
        return connected

    def close(self) -> Deferred[None]:
        """Say good-bye.  Commands on their way stay with the broker; their handles hear no more."""
        for sent in self._waiting.values():
            self._cancel(sent)
        self._waiting.clear()
        return self._link.stop()

    def _state(self, state: LinkState) -> None:
        came = state.up and not self.link.up
        self.link = state
        if not came:
            return
        for sent in list(self._waiting.values()):
            if not sent.handle.answered:
                self._post(sent)
        connecting, self._connecting = self._connecting, []
        for one in connecting:  # last: whoever waited sends at once, and that is not to be repeated here
            one.callback(None)

    # -- commands

    async def start(self, host: str, *, owner: Optional[Owner] = None, reason: str = "", **args: Any) -> Handle:
        """Start `count` VMs (default 1).  args: those of vm.start/1, such as image, flavour, lifetime_s, networks.

        `image` may be the id alone.  The handle's `ids` are the VMs' ids, in the order of the members.
        """
        if isinstance(args.get("image"), str):
            args["image"] = {"id": args["image"]}
        return self.command(host, "vm.start", args, owner=owner, reason=reason)

    async def stop(self, host: str, *, reason: str = "", **args: Any) -> Handle:
        """End VMs: ACPI, then destroy after `grace_s`.  args: a selector (vms | tag | owner | image | all)."""
        return self.command(host, "vm.stop", args, reason=reason)

    async def kill(self, host: str, *, reason: str = "", **args: Any) -> Handle:
        """End VMs at once."""
        return self.command(host, "vm.kill", args, reason=reason)

    async def pause(self, host: str, *, reason: str = "", **args: Any) -> Handle:
        """Stop the vCPUs of VMs; their lease goes on."""
        return self.command(host, "vm.pause", args, reason=reason)

    async def resume(self, host: str, *, reason: str = "", **args: Any) -> Handle:
        """Let paused VMs run again."""
        return self.command(host, "vm.resume", args, reason=reason)

    async def reboot(self, host: str, *, reason: str = "", **args: Any) -> Handle:
        """Ask VMs to reboot."""
        return self.command(host, "vm.reboot", args, reason=reason)

    async def restart(self, host: str, *, reason: str = "", **args: Any) -> Handle:
        """Make VMs anew from their golden images, within their leases."""
        return self.command(host, "vm.restart", args, reason=reason)

    async def extend(self, host: str, *, reason: str = "", **args: Any) -> Handle:
        """Change the agreed run time: `lifetime_s` in all, or `until` a wall time."""
        return self.command(host, "vm.extend", args, reason=reason)

    async def limits(self, host: str, *, reason: str = "", **args: Any) -> Handle:
        """Change limits of running VMs: a selector, and what is to be changed, such as cpu_cap_core_percent, networks.

        All or nothing per VM; `done` when every new limit was read back.
        """
        return self.command(host, "vm.limits", args, reason=reason)

    async def query(self, host: str, **args: Any) -> Sequence[Mapping[str, Any]]:
        """The full states of VMs on one host, asked now; default all.  Problems and Faults as the handle's."""
        reply = await self.command(host, "vm.query", args or {"all": True}).done
        return list(reply["result"]["vms"])

    async def capacity(self, host: str, *, owner: Optional[Owner] = None, **args: Any) -> Mapping[str, Any]:
        """How many such VMs can start on a host, asked now.  args: those of capacity.query/1."""
        reply = await self.command(host, "capacity.query", args, owner=owner).done
        return dict(reply["result"])

    async def report(self, host: str = EVERY_HOST) -> Handle:
        """Ask for a snapshot, of one host or of all; it arrives as an event and renews `fleet`."""
        return self.command(host, "host.report", {})

    async def drain(self, host: str, *, reason: str = "") -> Handle:
        """Refuse new VMs."""
        return self.command(host, "host.drain", {}, reason=reason)

    async def undrain(self, host: str, *, reason: str = "") -> Handle:
        """Accept new VMs again."""
        return self.command(host, "host.undrain", {}, reason=reason)

    async def images(self, host: str) -> Mapping[str, Any]:
        """What a host knows of images, asked now: `images`, `revocations`, `revocation_version`."""
        reply = await self.command(host, "image.list", {}).done
        return dict(reply["result"])

    async def revoke(self, host: str = EVERY_HOST, *, reason: str = "", **args: Any) -> Handle:
        """Say that an image is not to be trusted any more.  args: `id` or `sha512`, `action`, `version`."""
        return self.command(host, "image.revoke", args, reason=reason)

    def command(
        self,
        host: str,
        verb: str,
        args: Mapping[str, Any],
        *,
        owner: Optional[Owner] = None,
        if_generation: Optional[int] = None,
        reason: str = "",
        valid_s: float = VALID_S,
    ) -> Handle:
        """Sign and send any verb.  KeyError for a verb that does not exist."""
        every = host == EVERY_HOST
        if every and not VERBS[verb].topic:
            raise Problem("wrong-target", f"{verb} goes to one host; name it", path="target")
        id = str(uuid.UUID(int=self._random.getrandbits(128), version=4))
        handle = Handle(id, host, VERBS[verb].name, _ids(id, verb, args))
        issued = self._issue_s()
        body = self._signed({
            "schema": f"{verb}/1", "id": id, "issued_at": walltime.text(issued),
            "valid_until": walltime.text(issued + valid_s), "target": host, "reply_to": self._site.replies,
            "on_behalf_of": _owner(owner or self._site.owner), "if_generation": if_generation, "reason": reason,
            "args": dict(args),
        })
        destination = self._site.broker.commands_all if every else self._site.commands(host)
        sent = self._waiting[id] = _Sent(handle, destination, body, issued + valid_s)
        self._post(sent)
        return handle

    def _issue_s(self) -> float:
        """Now, but later than the last command: agents refuse what was issued before the last one applied."""
        self._last_issued_s = max(self._wall_s(), self._last_issued_s + 0.001)
        return self._last_issued_s

    def _signed(self, payload: Mapping[str, Any]) -> bytes:
        kept = {name: value for name, value in payload.items() if value not in (None, "")}
        body = json.dumps(kept, separators=(",", ":"), allow_nan=False).encode("ascii")
        try:
            return signing.sign(body, self._site.key_pem, self._site.chain_pem)
        except ValueError as error:
            raise Problem("configuration", f"key and chain cannot sign: {error}", path="key") from None

    # -- sending, again and again

    def _post(self, sent: _Sent) -> None:
        self._cancel(sent)
        left_s = sent.until_s - self._wall_s()
        if left_s <= 0:
            self._late(sent)
            return
        sent.timer = self._reactor.callLater(min(sent.retry_s, left_s), self._post, sent)
        sent.retry_s = min(2 * sent.retry_s, LONGEST_RETRY_S)
        headers = {"vma-command": sent.handle.id}
        posted = self._link.send(sent.destination, sent.body, headers, expires_s=left_s)
        posted.addErrback(self._not_sent, sent)

    def _not_sent(self, failure: Failure, sent: _Sent) -> None:
        error = failure.value
        if isinstance(error, Fault) and error.kind is not FaultKind.REFUSED:
            log.info("command %s was not sent: %s; it is sent again", sent.handle.id, error)
            return
        self._settle(sent)
        fault = error if isinstance(error, Fault) else Fault(FaultKind.UNKNOWN, str(error))
        sent.handle.fail(fault)

    def _late(self, sent: _Sent) -> None:
        """Valid no more: an agent would refuse it, whatever it did.  An accepted one may still end: its VMs tell."""
        if sent.handle.answered:
            return
        self._settle(sent)
        sent.handle.fail(Fault(FaultKind.UNKNOWN, f"{sent.handle.host} did not answer while the command was valid; "
                                                  "a frame that fails authentication is answered at the site's "
                                                  "default replies queue only"))

    def _settle(self, sent: _Sent) -> None:
        self._cancel(sent)
        self._waiting.pop(sent.handle.id, None)

    def _cancel(self, sent: _Sent) -> None:
        if sent.timer is not None and sent.timer.active():
            sent.timer.cancel()
        sent.timer = None

    # -- frames

    def watch(self, watcher: Watcher) -> Callable[[], None]:
        """Call `watcher` with every new event, after `fleet` has taken it, until the returned function is called."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    def _frame(self, frame: Frame) -> None:
        try:
            body = strictjson.loads(frame.body, LARGEST_EVENT_KIB * 1024)
            if not isinstance(body, dict):
                raise ValueError("not an object")
            if "specversion" in body:
                self._event(body)
            else:
                self._reply(body)
        except (Problem, LookupError, TypeError, ValueError) as error:
            self.malformed += 1
            log.warning("a frame from %s is not understood: %s", frame.destination, error)
        self._link.ack(frame)

    def _reply(self, body: Mapping[str, Any]) -> None:
        status, id = body["status"], body["command"]
        sent = self._waiting.get(str(id))
        if sent is None:
            self.strays += 1
            log.info("a reply (%s) to %s, which nobody here waits for", status, id)
            return
        if sent.handle.host == EVERY_HOST:
            self._reply_of_many(sent, body)
            return
        sent.handle.take(body)
        if sent.handle.settled:
            self._settle(sent)

    def _reply_of_many(self, sent: _Sent, body: Mapping[str, Any]) -> None:
        """Every host answers: one that does it is enough, and one that refuses does not speak for the others."""
        if body["status"] == "refused":
            sent.handle.refusals.append(problem_of(body))
            return
        sent.handle.take(body)
        self._cancel(sent)
        sent.timer = self._reactor.callLater(max(0.0, sent.until_s - self._wall_s()), self._settle, sent)

    def _event(self, event: Event) -> None:
        taken = self.collector.take(event)
        if taken.missing:
            log.warning("%s: %d events are missing before %s", event["source"], len(taken.missing), event["id"])
        if not taken.new:
            return
        self.fleet.apply(event)
        for watcher in tuple(self._watchers):
            try:
                watcher(event)
            except Exception:  # noqa: BLE001 - edge: a watcher is somebody else's code
                self.failures += 1
                log.exception("a watcher failed on %s", event["id"])


def _ids(id: str, verb: str, args: Mapping[str, Any]) -> Tuple[str, ...]:
    if verb == "vm.start":
        return tuple(identity.vm_id(id, member) for member in range(int(args.get("count", 1))))
    return tuple(str(vm) for vm in args.get("vms", ()))


def _owner(owner: Optional[Owner]) -> Optional[Mapping[str, str]]:
    return None if owner is None else {"subject": owner.subject, "fqan": owner.fqan}
