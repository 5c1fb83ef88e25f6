"""Broker settings for tests: quick heart-beats, short deadlines."""

from __future__ import annotations

from typing import Any

from vmagent.config import BrokerSettings


def broker_settings(**changes: Any) -> BrokerSettings:
    members = {
        "profile": "rabbitmq",
        "urls": ("stomp://127.0.0.1:1",),
        "virtual_host": "/",
        "login": "",
        "passcode_file": None,
        "tls": None,
        "heartbeat_s": 2.0,
        "receipt_s": 5.0,
        "reconnect_max_s": 0.5,
        "window": 50,
        "max_command_kib": 64,
        "client_id": "",
        "commands": "/queue/vmagent.site.host.commands",
        "commands_all": "/topic/vmagent.site.commands",
        "events": "/topic/vmagent.site.events",
        "usage": "/queue/vmagent.site.usage",
        "capacity": "/topic/vmagent.site.capacity",
        "telemetry": "/topic/vmagent.site.telemetry",
        "spool_rows": 10_000,
        "spool_mib": 64,
    }
    return BrokerSettings(**{**members, **changes})
