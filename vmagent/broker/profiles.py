"""How the three supported brokers differ, as data (FORMATS 9.2).

STOMP says nothing about persistence, expiry, durable subscriptions and prefetch: every broker has its own headers, and
Artemis its own names.  Whatever differs stands in `PROFILES`; the rest of the package asks the profile.

What is the same everywhere and so is not in the table: every frame that matters asks for a receipt, subscriptions are
`ack:client-individual`, `content-length` is always sent (the bytes that were signed are the bytes that arrive; on
ActiveMQ and Artemis it makes a BytesMessage), no NACK, no selector, no transaction.

Redelivery: RabbitMQ's classic queues and ActiveMQ Classic give a STOMP message back without limit (both proven in
tests/broker); Artemis moves it to the dead-letter address after 10 deliveries unless the broker's address-setting for
the command queues says `<max-delivery-attempts>-1</max-delivery-attempts>`: a client cannot set that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict, Mapping, Optional, Tuple

PREFETCH_FRAMES = 16  # frames a broker may hand out before the first is acknowledged


@dataclass(frozen=True)
class Kind:
    """A kind of destination: how we write it, how the broker wants it, and what must be said with it."""

    ours: str  # "/queue/" | "/topic/"
    theirs: str  # what takes the place of `ours`
    send: Tuple[Tuple[str, str], ...] = ()
    subscribe: Tuple[Tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Profile:
    """One broker.  In header values, `{client}` is the client id and `{id}` the subscription's id."""

    name: str
    kinds: Tuple[Kind, ...]
    connect: Tuple[Tuple[str, str], ...]  # sent when there is a client id
    durable: Tuple[Tuple[str, str], ...]  # on SUBSCRIBE, for a durable subscription
    prefetch: str  # header that bounds what is handed out unacknowledged
    prefetch_in_bytes: bool
    expiry: str  # header of a message's end
    expiry_absolute: bool  # milliseconds since 1970 (True) or from now (False)
    message: Tuple[Tuple[str, str], ...]  # on every SEND
    reply_prefixes: Tuple[str, ...]  # private reply queues that a command's reply_to may name

    def destination(self, ours: str) -> str:
        """The broker's name of a destination written `/queue/x` or `/topic/x`; other forms are handed through."""
        kind = self._kind(ours)
        return ours if kind is None else kind.theirs + ours[len(kind.ours) :]

    def connect_headers(self, client: str) -> Dict[str, str]:
        """Beside `host`, `login` and `passcode`."""
        return {name: value.format(client=client) for name, value in self.connect} if client else {}

    def subscribe_headers(self, ours: str, id: str, durable: bool, client: str, frame_bytes: int) -> Dict[str, str]:
        """Everything of a SUBSCRIBE but its receipt.  `frame_bytes`: the largest frame that is expected."""
        kind = self._kind(ours)
        size = PREFETCH_FRAMES * frame_bytes if self.prefetch_in_bytes else PREFETCH_FRAMES
        headers = {"destination": self.destination(ours), "id": id, "ack": "client-individual"}
        headers[self.prefetch] = str(size)
        headers.update(kind.subscribe if kind else ())
        if durable:
            headers.update((name, value.format(client=client, id=id)) for name, value in self.durable)
        return headers

    def send_headers(
        self, ours: str, extra: Mapping[str, str], expires_s: Optional[float], wall_s: float
    ) -> Dict[str, str]:
        """Everything of a SEND but its receipt and length.  expires_s: seconds from now; wall_s: now, since 1970."""
        kind = self._kind(ours)
        headers = {**extra, **dict(self.message), **dict(kind.send if kind else ())}
        headers["destination"] = self.destination(ours)
        if expires_s is not None:
            headers[self.expiry] = str(int(((wall_s if self.expiry_absolute else 0.0) + expires_s) * 1000))
        return headers

    def _kind(self, ours: str) -> Optional[Kind]:
        return next((kind for kind in self.kinds if ours.startswith(kind.ours)), None)


_PLAIN = (Kind("/queue/", "/queue/"), Kind("/topic/", "/topic/"))

PROFILES: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile(
            name="rabbitmq",
            kinds=_PLAIN,
            connect=(),
            # Without x-queue-name the queue's name is a digest, and no permission could name it.
            durable=(("durable", "true"), ("auto-delete", "false"), ("x-queue-name", "{id}")),
            prefetch="prefetch-count",
            prefetch_in_bytes=False,
            expiry="expiration",
            expiry_absolute=False,
            message=(("persistent", "true"),),
            reply_prefixes=("/reply-queue/", "/amq/queue/amq.gen-"),
        ),
        Profile(
            name="activemq",
            kinds=_PLAIN,
            connect=(("client-id", "{client}"),),
            durable=(("activemq.subscriptionName", "{id}"),),
            prefetch="activemq.prefetchSize",
            prefetch_in_bytes=False,
            expiry="expires",
            expiry_absolute=True,
            message=(("persistent", "true"),),
            reply_prefixes=("/remote-temp-queue/",),
        ),
        Profile(
            name="artemis",
            kinds=(
                Kind("/queue/", "", (("destination-type", "ANYCAST"),), (("subscription-type", "ANYCAST"),)),
                Kind("/topic/", "", (("destination-type", "MULTICAST"),), (("subscription-type", "MULTICAST"),)),
            ),
            connect=(("client-id", "{client}"),),
            durable=(("durable-subscription-name", "{id}"),),
            prefetch="consumer-window-size",
            prefetch_in_bytes=True,
            expiry="expires",
            expiry_absolute=True,
            message=(("persistent", "true"),),
            reply_prefixes=(),
        ),
    )
}
