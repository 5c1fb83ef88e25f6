"""Answers of the local socket as text for people: rich tables on a terminal, plain columns elsewhere.

Rules: a program reads `--json`, never this.  Whatever came from a guest's owner or a foreign domain is cleaned before
it is shown, so no name can move the cursor or colour the screen.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence, TextIO, Tuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vmagent.core import columns, duration, imagewords, limitwords

SHORT = 8  # characters of an id that a terminal shows; any unique beginning is accepted as input
STYLES: Mapping[str, str] = {
    "ready": "green", "running": "green", "ok": "green", "done": "green", "over": "green",
    "starting": "cyan", "fetching": "cyan", "pending": "cyan", "paused": "yellow", "stopping": "yellow",
    "accepted": "cyan", "warn": "yellow", "unknown": "magenta", "foreign": "magenta",
    "stuck": "red", "failed": "red", "refused": "red", "crashed": "red", "lost": "red", "fail": "red",
}
Row = Sequence[str]


class Screen:
    """Where text goes."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self.terminal = out.isatty()
        self._console = Console(file=out, highlight=False, soft_wrap=True)

    def line(self, text: str = "", style: str = "") -> None:
        """One line."""
        if self.terminal:
            self._console.print(Text(columns.clean(text), style=style))
        else:
            self._out.write(columns.clean(text) + "\n")

    def id(self, vm: str) -> str:
        """A VM's id: short on a terminal, whole elsewhere."""
        return vm[:SHORT] if self.terminal else vm

    def table(self, header: Row, rows: Sequence[Row], nothing: str = "") -> None:
        """A table, or the line `nothing` when there are no rows."""
        if not rows:
            self.line(nothing)
        elif self.terminal:
            self._rich(header, rows)
        else:
            self._out.write("\n".join(columns.lines(header, rows)) + "\n")

    def _rich(self, header: Row, rows: Sequence[Row]) -> None:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in header:
            table.add_column(name, overflow="fold", no_wrap=name in ("ID", "PHASE", "LEFT"))
        for row in rows:
            table.add_row(*(Text(columns.clean(cell) or "-", style=STYLES.get(cell, "")) for cell in row))
        self._console.print(table, soft_wrap=False)

    def pairs(self, pairs: Sequence[Tuple[str, Any]]) -> None:
        """`name  value` lines; what is empty is left out."""
        shown = [(name, str(value)) for name, value in pairs if value not in (None, "", [], {})]
        width = max((len(name) for name, _ in shown), default=0)
        for name, value in shown:
            self.line(f"{name.ljust(width)}  {value}")


def span(seconds: Any) -> str:
    """A span in words, `-` when it is not known."""
    return "-" if seconds is None else duration.text(seconds)


# -- one function per answer


def vms(screen: Screen, rows: Sequence[Mapping[str, Any]]) -> None:
    header = ("ID", "NAME", "PHASE", "LEFT", "OWNER", "CORES", "MIB", "IMAGE", "ADDRESSES")
    screen.table(header, [_vm(screen, row) for row in rows], "no VMs")


def _vm(screen: Screen, row: Mapping[str, Any]) -> Row:
    phase = f"{row['phase']} ({row['outcome']})" if row["outcome"] else row["phase"]
    return (screen.id(row["vm"]), row["name"], phase, span(row["left_s"]), row["owner"], str(row["cores"]),
            str(row["memory_mib"]), row["image"], " ".join(row["addresses"]))


def listing(screen: Screen, answer: Mapping[str, Any]) -> None:
    vms(screen, answer["vms"])
    if answer["foreign"]:
        screen.line()
        screen.line("not ours, never touched:")
        rows = [(screen.id(one["uuid"]), one["name"], one["seen"], one["why"]) for one in answer["foreign"]]
        screen.table(("ID", "NAME", "STATE", "WHY"), rows)


def _endorsed(image: Mapping[str, Any]) -> str:
    """Who vouched for it when the VM was admitted."""
    by = image.get("endorser")
    return f"{by} (list {image['list']}, version {image['list_version']})" if by else "this site, by its catalogue"


def show(screen: Screen, answer: Mapping[str, Any]) -> None:
    row, state, seen = answer["row"], answer["state"], answer["seen"]
    lease = state["lease"]
    screen.pairs([
        ("id", row["vm"]), ("name", row["name"]), ("phase", row["phase"]), ("since", row["since"]),
        ("outcome", row["outcome"]), ("wanted", row["desired"]), ("owner", row["owner"]), ("vo", row["vo"]),
        ("controller", row["controller"]), ("command", state["command"]),
        ("size", f"{row['cores']} cores, {row['memory_mib']} MiB, {row['disk_gib']} GiB"),
        ("image", f"{row['image']} (sha512 {state['image']['sha512'][:16]}...)"),
        ("endorsed by", _endorsed(state["image"])), ("its download", imagewords.fetch(state["fetch"])),
        ("tags", " ".join(row["tags"])),
        ("lease", f"{span(lease['granted_s'])} granted, {span(lease['used_s'])} used, {span(row['left_s'])} left"),
        ("ends", lease["ends_at"]),
        ("limits", _limits(state["limits"])),
        ("libvirt", f"{seen['domain']} {seen['reason']}".strip() + f", seen {span(row['age_s'])} ago"),
        ("on this host", ", ".join(seen["leftovers"])),
        ("timings", ", ".join(f"{name} {ms} ms" for name, ms in state["timings_ms"].items())),
    ])
    for one in state["interfaces"]:
        spoke = "has spoken" if one["device"] in seen["network_seen"] else "silent"
        screen.line(f"interface  {one['device']}  {one['network']}  {one['mac']}  "
                    f"{' '.join(one['addresses'])}  {spoke}")
    for one in state["snapshots"]:
        screen.line(f"snapshot  {one['name']}  {one['kind']}  {one['state']} {one['percent'] or ''}  "
                    f"until {one['expires_at']}  {one['why']}".rstrip())
    for reason in state["reasons"]:
        screen.line(f"reason  {reason['when']}  {reason['who']}: {reason['why']}")


def _limits(limits: Mapping[str, Any]) -> str:
    """In one line; `vmagentctl limits` has the rest."""
    proven = ", ".join(limits["proven"]) or "nothing"
    differs = "; ".join(f"{one['what']}: {one['found']}" for one in limits["drift"])
    return f"CPU {limitwords.cap(limits['wanted']['cpu']['cap_core_percent'])}; proven: {proven}" + (
        f"; differs: {differs}" if differs else "")


def who(screen: Screen, answer: Mapping[str, Any]) -> None:
    header = ("OWNER", "VO", "VMS", "CORES", "MIB", "GIB", "IDS")
    rows = [
        (one["owner"], one["vo"], str(one["count"]), str(one["cores"]), str(one["memory_mib"]), str(one["disk_gib"]),
         " ".join(screen.id(row["vm"]) for row in one["vms"]))
        for one in answer["owners"]
    ]
    screen.table(header, rows, "nobody runs anything")


WORDS = {True: "yes", False: "no", None: "unknown"}


def over(screen: Screen, answer: Mapping[str, Any]) -> None:
    header = ("ID", "NAME", "PHASE", "OUTCOME", "PROCESS", "INTERFACE", "DISK", "DOMAIN")
    rows = [
        (screen.id(one["vm"]), one["name"], one["phase"], one["outcome"] or "",
         *(WORDS[one[what]] for what in ("process", "interface", "disk", "domain")))
        for one in answer["members"]
    ]
    screen.table(header, rows, "nothing was ever started here under this handle, as far as this agent's store knows")
    if answer["over"]:
        screen.line(f"{answer['handle']}: over; no process, no interface, no disk, no domain", "green")
    elif answer["unknown"]:
        screen.line(f"{answer['handle']}: unknown; it cannot be proven now", "magenta")
    else:
        screen.line(f"{answer['handle']}: not over", "red")


def drain_check(screen: Screen, answer: Mapping[str, Any]) -> None:
    header = ("ID", "NAME", "PHASE", "ENDS IN", "OWNER", "WHY")
    entries = [*answer["ending"], *answer["staying"]]
    screen.table(header, [
        (screen.id(one["vm"]), one["name"], one["phase"], span(one["ends_in_s"]), one["owner"], one["why"])
        for one in entries
    ], "no VM of ours is here")
    for one in answer["foreign"]:
        screen.line(f"not ours, but {one['seen']}: {one['name']} {one['uuid']}")
    within = duration.text(answer["minutes"] * 60)
    if answer["yes"]:
        screen.line(f"yes: in {within} this host can go down", "green")
    else:
        staying = len(answer["staying"]) + len(answer["foreign"])
        empty = span(answer["empty_in_s"]) if answer["empty_in_s"] is not None else "nobody can tell when"
        screen.line(f"no: {staying} will still be here in {within}; it is empty in: {empty}", "red")
    if not answer["drained"]:
        screen.line("not drained: new VMs may still come; `vmagentctl drain` refuses them", "yellow")


def status(screen: Screen, answer: Mapping[str, Any]) -> None:
    hypervisor = answer["hypervisor"]
    known = {"host", "site", "instance", "epoch", "hypervisor", "phases", "ended", "degraded", "drained"}
    screen.pairs([
        ("host", f"{answer['host']} (site {answer['site']})"),
        ("hypervisor", f"{hypervisor['uri']} {hypervisor['domain_type']}, "
                       f"{'connected' if hypervisor['connected'] else 'AWAY'} {hypervisor['why']}".strip()),
        ("drained", "yes: new VMs are refused" if answer.get("drained") else "no"),
        ("VMs", _counts(answer["phases"]) or "none"),
        ("ended lately", _counts(answer["ended"])),
        ("epoch", f"{answer['epoch']['number']} since {answer['epoch']['born']}"),
        *((name, _short(value)) for name, value in sorted(answer.items()) if name not in known),
    ])
    for part, why in sorted(_degraded(answer).items()):
        screen.line(f"degraded  {part}: {why}", "red")


def _degraded(answer: Mapping[str, Any]) -> Dict[str, str]:
    return dict(answer.get("degraded") or {})


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_short(one)}" for name, one in value.items())
    return WORDS[value] if isinstance(value, bool) or value is None else str(value)


def audit(screen: Screen, answer: Mapping[str, Any]) -> None:
    header = ("WHEN", "WHO", "ROUTE", "VERB", "VERDICT", "SUBJECT", "WHY")
    cells = [tuple(str(row.get(name, "")) for name in ("when_wall", "who", "route", "verb", "verdict", "subject",
                                                       "why")) for row in answer["audit"]]
    screen.table(header, cells, "nothing was asked yet")


def findings(screen: Screen, rows: Sequence[Mapping[str, str]]) -> None:
    width = max(len(row["title"]) for row in rows)
    for row in rows:
        screen.line(f"{row['level']:7}  {row['title'].ljust(width)}  {row['text']}", STYLES.get(row["level"], ""))
        if row["mend"]:
            screen.line(f"{'':9}{'':{width}}  -> {row['mend']}")


def event(screen: Screen, entry: Mapping[str, Any]) -> None:
    data = entry["data"]
    kind = str(entry["type"]).replace("org.vmagent.", "")
    words: List[str] = [str(data[name]) for name in ("phase", "outcome", "kind", "before_s", "reason", "detail")
                        if data.get(name) not in (None, "")]
    subject = str(data.get("name") or "")
    about = f"{entry['subject']} {subject}".strip()
    screen.line(f"{entry['time']}  {kind}  {about}  {' '.join(words)}".rstrip(), STYLES.get(str(data.get("phase")), ""))


def reply(screen: Screen, answer: Mapping[str, Any]) -> None:
    screen.line(f"{answer['status']}  command {answer.get('command')}", STYLES.get(answer["status"], ""))
    result = answer.get("result") or {}
    for one in result.get("members", ()):
        screen.line(f"  {one.get('member', '')}  {one.get('vm', '')}  {one['status']}  "
                    f"{(one.get('problem') or {}).get('detail', '')}".rstrip())
    for problem in problems(answer.get("problem")):
        screen.line(f"  {problem}", "red")


def problems(body: Any) -> List[str]:
    """Every reason of a problem, one line each."""
    if not isinstance(body, Mapping):
        return []
    accepted = body.get("accepted")
    tail = f" (accepted: {_short_list(accepted)})" if accepted else ""
    path = f"at {body['path']}: " if body.get("path") else ""
    first = f"{body.get('type')}: {path}{body.get('detail')}{tail}"
    return [first, *(line for one in body.get("also", ()) for line in problems(one))]


def _short_list(value: Any) -> str:
    return ", ".join(str(one) for one in value) if isinstance(value, (list, tuple)) else str(value)
