"""What this host can take, as text for people: `vmagentctl capacity`."""

from __future__ import annotations

from typing import Any, List, Mapping, Optional, Sequence

from vmagent.core import capacityasking, duration, limitwords
from vmagent.local.tables import Screen

Answer = Mapping[str, Any]


def capacity(screen: Screen, answer: Answer) -> None:
    """The data of host.capacity."""
    later = [f"IN {duration.text(one['in_s'])}" for one in answer["later"]]
    screen.table(("WHAT", "TOTAL", "PROMISED", "FREE", "RESERVED", *later), [
        (what, *(_number(answer[what][name]) for name in ("total", "promised", "free", "reserved")),
         *(_number(one["free"][what]) for one in answer["later"]))
        for what in ("cores", "memory_mib", "disk_gib")
    ])
    if answer["flavours"]:
        screen.line()
        screen.table(("FLAVOUR", "CORES", "MIB", "GIB", "NOW", *later, "WHY NOT MORE"),
                     [_flavour(one, answer["later"]) for one in answer["flavours"]])
    if answer["networks"]:
        screen.line()
        screen.table(("NETWORK", "SOLD IN", "SOLD OUT", "UPLINK", "GUARANTEE", "ADDRESSES", "PORTS"),
                     [_network(one) for one in answer["networks"]])
    screen.line()
    screen.pairs(_words(answer))
    for reason in answer["reasons"]:
        screen.line(f"nothing starts  {reason['type']}: {reason['detail']}", "red")
    for one in answer["stale"]:
        screen.line(f"old  {one['part']}: since {one['since'] or 'ever'}: {one['why']}", "magenta")


def _number(value: Optional[int]) -> str:
    return "unknown" if value is None else str(value)


def _flavour(one: Answer, later: Sequence[Answer]) -> Sequence[str]:
    why = ", ".join(dict.fromkeys(str(reason.get("resource", reason["type"])) for reason in one["reasons"]))
    return (one["flavour"], *(str(one[name]) for name in ("cores", "memory_mib", "disk_gib", "possible")),
            *(str(then["flavours"][one["flavour"]]) for then in later), why)


def _network(one: Answer) -> Sequence[str]:
    free = one["addresses_free"]
    return (one["type"], _sold(one, "in"), _sold(one, "out"), _rate(one["bandwidth_link_kbit"]), one["guarantee"],
            "no end" if free is None else str(free), _number(one["ports_free"]))


def _sold(one: Answer, way: str) -> str:
    beside = f" and {one['unlimited']} without a limit" if one["unlimited"] else ""
    return _rate(one[f"bandwidth_sold_{way}_kbit"]) + beside


def _rate(kbit: Optional[int]) -> str:
    return "unknown" if kbit is None else limitwords.bandwidth(kbit) if kbit else "0"


def _words(answer: Answer) -> List[Any]:
    largest, starts, vms = answer["largest"], answer["starts"], answer["vms"]
    overhead = answer["memory_mib"]["overhead"]
    seen = "" if overhead["learned"] is None else f" (the most that was seen: {overhead['learned']})"
    taken = "no start was measured in the last day" if starts["median_s"] is None else (
        f"{starts['median_s']:g} s (median), {starts['p95_s']:g} s (95 of 100), of {starts['count']} in the last day")
    return [
        ("largest VM now", "none" if largest is None else
         f"{largest['cores']} cores, {largest['memory_mib']} MiB, {largest['disk_gib']} GiB"),
        ("VMs", ", ".join(f"{count} {word}" for word, count in vms.items() if count or word == "total")),
        ("beside each guest", f"{overhead['counted']} MiB{seen}"),
        ("a start takes", taken),
        *(("device", f"{one['address']} {one['kind']} {one['vendor']}:{one['device']} {one['driver'] or 'no driver'}")
          for one in answer["devices"] or ()),
        ("believe it until", answer["valid_until"]),
    ]


def answer(screen: Screen, result: Answer) -> None:
    """`result` of capacity.query."""
    asked, then, start, yours = result["asked"], result["then"], result["start_s"], result["yours"]
    later = ", ".join(f"{one['possible']} in {duration.text(one['in_s'])}" for one in result["later"])
    enough = result["enough_in_s"]
    screen.pairs([
        ("asked for", f"{asked['count']}" + (f" from {asked['from']}" if asked["from"] else "")),
        ("possible now", str(result["now"]["possible"])),
        ("possible then", str(then["possible"]) if asked["from"] else ""),
        ("as leases end", later),
        ("room for all", "not within six hours, as far as is certain" if enough is None else
         "now" if enough == 0 else f"in {duration.text(enough)}"),
        ("all run after", "unknown: no start was measured in the last day" if start["all"] is None else
         f"{start['all']:g} s (one: {start['median']:g} s)"),
        ("of these yours", "" if yours is None else f"{yours['possible']} for {yours['vo'] or yours['subject']}, "
                                                    f"which holds {yours['holds']['vms']['total']} VMs"),
    ])
    for line in capacityasking.details(result):
        screen.line(f"why not more  {line}", "yellow")
