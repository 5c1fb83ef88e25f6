"""The wire as an AsyncAPI 3 document, from the same schemas that the agent checks with.  Pure.

Source: AsyncAPI 3.0.0 (the specification's text and its official parser).
"""

from __future__ import annotations

import json
from typing import Any, Dict, List, Mapping

import vmagent
from vmagent.core import events, schemas
from vmagent.core.commands import VERBS

_ABOUT = (
    "What a hypervisor host's agent takes and publishes over STOMP, from the agent's side: it receives commands, it"
    " sends everything else. A command's payload is described as it is before it is signed; on the wire it is the"
    " `payload` of a flattened JWS (security.commands: signed, the default)."
)
_DRAFT_07 = "application/schema+json;version=draft-07"
_STREAMS: Mapping[str, str] = {"vm.usage": "usage", "host.capacity": "capacity", "host.telemetry": "telemetry"}
"""Published types that do not go to the events; a gap is told on the stream that has it."""
_SITE = {"site": {"description": "the setting `site`"}}
_ON_HOST = {**_SITE, "host": {"description": "the setting `host`"}}
_ADDRESSES: Mapping[str, str] = {
    "commands": "/queue/vmagent.{site}.{host}.commands",
    "commandsToAll": "/topic/vmagent.{site}.commands",
    "replies": "/queue/vmagent.{site}.replies",
    "events": "/topic/vmagent.{site}.events",
    "usage": "/queue/vmagent.{site}.usage",
    "capacity": "/topic/vmagent.{site}.capacity",
    "telemetry": "/topic/vmagent.{site}.telemetry",
}
"""The defaults; all can be configured."""


def document() -> Dict[str, Any]:
    channels = {name: _channel(name) for name in _ADDRESSES}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "vmagent",
            "version": vmagent.__version__,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {"broker": {"host": "broker.example.org:61614", "protocol": "stomps"}},
        "channels": channels,
        "operations": {name: _operation(name) for name in channels},
        "components": {"messages": _messages()},
    }


def text() -> str:
    return json.dumps(document(), indent=1, sort_keys=False) + "\n"


def _names(channel: str) -> List[str]:
    """The messages of a channel."""
    if channel.startswith("commands"):
        return [verb.name for verb in VERBS.values() if verb.topic or channel == "commands"]
    if channel == "replies":
        return ["reply"]
    return [name for name in sorted(events.TYPES) if _STREAMS.get(name, "events") == channel or name == "stream.gap"]


def _channel(name: str) -> Dict[str, Any]:
    address = _ADDRESSES[name]
    return {
        "address": address,
        "parameters": dict(_ON_HOST if "{host}" in address else _SITE),
        "messages": {each: {"$ref": f"#/components/messages/{each}"} for each in _names(name)},
    }


def _operation(name: str) -> Dict[str, Any]:
    takes = name.startswith("commands")
    told: Dict[str, Any] = {"action": "receive" if takes else "send", "channel": {"$ref": f"#/channels/{name}"}}
    if takes:
        told["reply"] = {
            "channel": {"$ref": "#/channels/replies"},
            "address": {"location": "$message.payload#/reply_to", "description": "where it is an allowed one"},
        }
    return told


def _messages() -> Dict[str, Any]:
    made = {verb.name: _command(verb.name, verb.title) for verb in VERBS.values()}
    made.update({name: _event(name) for name in sorted(events.TYPES)})
    made["reply"] = _message(schemas.schema("reply"), "the answer to a command")
    return made


def _command(name: str, what: str) -> Dict[str, Any]:
    version = {"const": f"{name}/1"}
    return _message({"allOf": [schemas.schema("command"),
                               {"properties": {"schema": version, "args": schemas.schema(name)}}]}, what)


def _event(name: str) -> Dict[str, Any]:
    of = schemas.schema(f"event.{name}")
    kind = {"const": events.PREFIX + name}
    return _message({"allOf": [schemas.schema("cloudevent"), {"properties": {"type": kind, "data": of}}]},
                    str(of["title"]))


def _message(schema: Mapping[str, Any], summary: str) -> Dict[str, Any]:
    return {"summary": summary, "payload": {"schemaFormat": _DRAFT_07, "schema": _without_ids(schema)}}


def _without_ids(node: Any) -> Any:
    """One schema's name must not stand in a document many times."""
    if isinstance(node, list):
        return [_without_ids(each) for each in node]
    if not isinstance(node, Mapping):
        return node
    named = isinstance(node.get("$id"), str)
    return {key: _without_ids(value) for key, value in node.items() if not (named and key in ("$id", "$schema"))}
