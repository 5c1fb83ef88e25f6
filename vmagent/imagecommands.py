"""Verbs on images: what is known of them, and what the site says against one (PROTOCOL 3).

A revocation is stored before anything is done about it, known to this host or not: an image that comes later is refused
all the same.  Versions are the site's: redelivery may reorder, so an older one about the same image is refused.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence, Tuple

from vmagent.consequences import Consequences, unseen
from vmagent.core import events, imageviews
from vmagent.core.changes import Change, PutRevocation
from vmagent.core.commands import Command
from vmagent.core.imagemodel import Revocation
from vmagent.core.model import Now, VmRecord
from vmagent.core.revocation import version
from vmagent.errors import Problem
from vmagent.revoking import Revoker
from vmagent.world import World

Done = Tuple[List[Change], Mapping[str, Any]]


class ImageCommands:
    """Decides image.* commands, inside the intake's transaction."""

    def __init__(self, world: World, consequences: Consequences, revoker: Revoker) -> None:
        self._world = world
        self._consequences = consequences
        self._revoker = revoker

    def effect(self, command: Command, now: Now) -> Done:
        """(changes, the reply's result).  Problem: `superseded`."""
        return self._revoke(command, now) if command.verb == "image.revoke" else ([], self.listing(now))

    async def after(self) -> None:
        """The command is committed: reach what runs."""
        await self._revoker.look()

    def listing(self, now: Now) -> Dict[str, Any]:
        """What image.list answers."""
        records = list(self._world.records.values())
        told = imageviews.known(self._consequences.policy.images, records, self._world.lists)
        return imageviews.listing(told, records, self._world.revocations,
                                  lambda one: self._consequences.distrust_of(one, now))

    def here(self, now: Now) -> Sequence[Mapping[str, Any]]:
        """The images that host.snapshot and image.state tell of: not those that only stand in a list."""
        records = list(self._world.records.values())
        told = imageviews.known(self._consequences.policy.images, records, {})
        views: Sequence[Mapping[str, Any]] = imageviews.listing(
            told, records, self._world.revocations, lambda one: self._consequences.distrust_of(one, now))["images"]
        return views

    def running(self) -> List[Dict[str, Any]]:
        """VM by VM, on which image it runs."""
        return [self._user(record) for record in imageviews.users(list(self._world.records.values()))]

    def _user(self, record: VmRecord) -> Dict[str, Any]:
        seen = self._world.observed.get(record.vm) or unseen(record.vm)
        return imageviews.user(record, events.phase(record, seen))

    def _revoke(self, command: Command, now: Now) -> Done:
        args, revocations = command.args, self._world.revocations
        said = Revocation(
            id=args.get("id", ""), sha512=args.get("sha512", ""),
            version=args.get("version", version(revocations) + 1), action=args.get("action", "forbid"),
            by=command.signer.subject, why=args.get("why") or command.reason, wall=now.wall,
        )  # fmt: skip
        before = revocations.get(said.key)
        if before is not None and said.version <= before.version:
            if (said.version, said.action) != (before.version, before.action):
                detail = f"this host knows version {before.version} about this image: {before.action}"
                raise Problem("superseded", detail, path="args.version", current=before.version)
            said = before
        changes: List[Change] = [] if said is before else [PutRevocation(said)]
        users = imageviews.on(said, list(self._world.records.values()))
        return changes, {
            "revocation": imageviews.revocation(said),
            "revocation_version": max(said.version, version(revocations)),
            "vms": [self._user(record) for record in users],
        }
