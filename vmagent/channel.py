"""The way to and from the broker, built and wired: cut out of parts.py for its length."""

from __future__ import annotations

import json
import logging
import random
from dataclasses import dataclass
from typing import Any, Callable

from twisted.internet.defer import Deferred

from vmagent import ports
from vmagent.broker.client import BrokerLink, LinkState, Subscription
from vmagent.broker.inbox import Inbox
from vmagent.broker.outbox import Outbox
from vmagent.broker.ownfiles import OwnFiles
from vmagent.broker.profiles import PROFILES
from vmagent.broker.trust import TrustStore
from vmagent.certifying import Certificates
from vmagent.config import Config
from vmagent.core import events, walltime
from vmagent.core.changes import OutboxRow
from vmagent.core.validity import CA, Papers
from vmagent.intake import Intake
from vmagent.lanes import Lanes
from vmagent.log import event
from vmagent.world import World

log = logging.getLogger("vmagent.daemon")
RELOAD_S = 30.0


@dataclass
class Channel:
    """The way to and from the broker."""

    link: BrokerLink
    inbox: Inbox
    outbox: Outbox
    certificates: Certificates


def channel(
    config: Config, reactor: Any, clock: ports.Clock, chance: random.Random, store: ports.Store, intake: Intake,
    world: World, trust: TrustStore, files: Lanes,
) -> Channel:
    broker = config.broker
    profile = PROFILES[broker.profile]
    everyone = Subscription(broker.client_id, broker.commands_all, durable=True)
    subscriptions = (Subscription("commands", broker.commands), everyone)

    def changed(state: LinkState) -> None:
        if state.up:
            world.degraded.pop("broker", None)
            event(log, "broker-up", "the broker is connected", peer=state.url)
        elif "broker" not in world.degraded:
            event(log, "broker-away", f"no broker: {state.why}", peer=state.url, reason=state.why)
        if not state.up:
            world.degraded["broker"] = state.why
        made.inbox.link_changed(state)
        made.outbox.link_changed(state)

    link = BrokerLink(broker, profile, reactor, lambda: walltime.seconds(clock.now().wall), chance, subscriptions,
                      lambda frame: made.inbox.received(frame), changed)
    max_bytes = broker.max_command_kib * 1024
    inbox = Inbox(link, reactor,
                  lambda raw, topic, headers: Deferred.fromCoroutine(intake.frame(raw, topic)),
                  lambda size: Deferred.fromCoroutine(intake.oversized(size)), frozenset({everyone.id}), max_bytes)
    source = f"//{config.policy.site}/{config.policy.host}"
    destinations = {"events": broker.events, "usage": broker.usage, "capacity": broker.capacity,
                    "telemetry": broker.telemetry, "replies": config.policy.default_reply}
    outbox = Outbox(store, link, reactor, source, destinations, _renderer(source), broker.window)
    papers = Certificates(world, clock, _papers(config, trust, files), link.renew,
                          config.security.certificate_warn_days)
    made = Channel(link, inbox, outbox, papers)
    return made


def _papers(config: Config, trust: TrustStore, files: Lanes) -> Callable[[], Deferred[Papers]]:
    """Reads the CA directory and our own files where they changed."""
    own = OwnFiles(config.broker.tls)

    def look() -> Papers:
        trust.reload()
        mine = own.look()
        faults = (*mine.faults, *((CA, f"left out: {text}") for text in trust.unreadable))
        return Papers((*mine.dated, *trust.dated), faults, mine.renewed)

    return lambda: files.run("trust", RELOAD_S, look)


def _renderer(source: str) -> Callable[[OutboxRow], bytes]:
    def render(row: OutboxRow) -> bytes:
        """The same bytes for the same row, every time."""
        body = row.data if row.stream == "replies" else events.cloud_event(row, source)
        return bytes(json.dumps(body, sort_keys=True, separators=(",", ":")), "utf-8")

    return render
