"""The command line of vmagentctl: every sub-command with its options, help and examples."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Tuple

from vmagent.core import asking, capacityasking, imageasking, moment
from vmagent.local import toplines

DEFAULT_SOCKET = Path("/run/vmagent/vmagent.sock")
DEFAULT_CONFIG = Path("/etc/vmagent/vmagent.yaml")

CODES = """exit codes:
  0  done, or the answer is yes
  1  it failed, or the answer is no
  2  the command line is wrong; of `over`: it cannot be proven now
  3  the agent refused: nothing was done, and it says why
  4  no agent answers on the socket
"""
VERBS_ON_VMS: Tuple[Tuple[str, str, str], ...] = (
    ("stop", "end VMs: ACPI, repeated, then destroy after the grace time", "vmagentctl stop 3fa1 --grace 30s"),
    ("kill", "end VMs at once", "vmagentctl kill 3fa1 worker-7\n  vmagentctl kill --tagged batch-4711 --yes"),
    ("reboot", "ask VMs to reboot", "vmagentctl reboot 3fa1"),
    ("restart", "make VMs anew from their golden images, within their leases", "vmagentctl restart 3fa1 --grace 30s"),
    ("revert", "throw away what VMs wrote: back to their golden images, or to a snapshot",
     "vmagentctl revert 3fa1 --grace 0s\n  vmagentctl revert 3fa1 --to before-upgrade"),
    ("attach", "attach a data volume to running VMs", "vmagentctl attach 3fa1 --volume reference-data:ro"),
    ("detach", "take a data volume away from running VMs", "vmagentctl detach 3fa1 --volume reference-data"),
    ("pause", "stop the vCPUs of VMs; their lease goes on", "vmagentctl pause worker-7"),
    ("resume", "let paused VMs run again", "vmagentctl resume worker-7"),
    ("extend", "change the agreed run time of VMs", "vmagentctl extend 3fa1 --lifetime 4h"),
)
"""Sub-commands that act on existing VMs: name, help, examples."""


def parser() -> argparse.ArgumentParser:
    """All of it."""
    top = argparse.ArgumentParser(
        prog="vmagentctl", description="Look at the VMs of this host and act on them, by the agent's local socket.",
        epilog=CODES + "\nA VM is named by its id, the beginning of its id (4 characters or more) or its name.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--socket", type=Path, metavar="PATH", help=f"the agent's socket (default {DEFAULT_SOCKET})")
    top.add_argument("--json", action="store_true", help="the answer as JSON, for programs")
    subs = top.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    _looking(subs)
    _acting(subs)
    _revoking(subs)
    _adopting(subs)
    _host(subs)
    return top


def _add(subs: Any, name: str, about: str, examples: str) -> argparse.ArgumentParser:
    sub: argparse.ArgumentParser = subs.add_parser(
        name, help=about, description=about[0].upper() + about[1:] + ".",
        epilog=f"examples:\n  {examples}\n\n{CODES}", formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="the answer as JSON, for programs")
    sub.add_argument("--socket", type=Path, default=argparse.SUPPRESS, metavar="PATH", help="the agent's socket")
    return sub


def _looking(subs: Any) -> None:
    listing = _add(subs, "list", "every VM of this host, and the domains that are not ours",
                   "vmagentctl list\n  vmagentctl list --ended --json")
    listing.add_argument("--ended", action="store_true", help="also those that ended lately")
    show = _add(subs, "show", "everything about one VM", "vmagentctl show 3fa1\n  vmagentctl show worker-7 --json")
    show.add_argument("vm", metavar="VM")
    show.add_argument("--occi", action="store_true", help="in the words of OCCI 1.2: text, or with --json a resource")
    _add(subs, "who", "who runs what", "vmagentctl who")
    _add(subs, "status", "the agent and this host in short", "vmagentctl status")
    _capacity(subs)
    _telemetry(subs)
    _top(subs)
    _add(subs, "glue", "this host's share of its site's GLUE 2.1 document, in JSON", "vmagentctl glue > share.json")
    events = _add(subs, "events", "what happened lately", "vmagentctl events\n  vmagentctl events -f --json")
    events.add_argument("-f", "--follow", action="store_true", help="go on with new events until interrupted")
    events.add_argument("-n", "--limit", type=_count, default=50, metavar="N", help="past events to show (default 50)")
    audit = _add(subs, "audit", "who asked what, by which route, and what became of it",
                 "vmagentctl audit\n  vmagentctl audit --subject 3fa1c0de-... -n 500")
    audit.add_argument("-n", "--limit", type=_count, default=50, metavar="N", help="entries, newest first (default 50)")
    audit.add_argument("--subject", default="", metavar="ID", help="only those about this VM id")
    images = _add(subs, "images", "the images that this host knows, and whether they are trusted",
                  "vmagentctl images\n  vmagentctl images --running --json\n  vmagentctl images --downloads --follow\n"
                  "  vmagentctl images fetch el9-worker --wait\n  vmagentctl images evict el8-worker")
    images.add_argument("--running", action="store_true", help="VM by VM: who runs on which image")
    images.add_argument("--downloads", action="store_true", help="what is being fetched, how far, for whom")
    images.add_argument("-f", "--follow", action="store_true", help="with --downloads: until nothing is fetched")
    _cache(images.add_subparsers(dest="does", metavar="ACTION"))
    usage = _add(subs, "usage", "what VMs were promised and used: the sums of the last day, or one VM period by period",
                 "vmagentctl usage\n  vmagentctl usage --since 2026-11-01 --until 2026-12-01 --json\n"
                 "  vmagentctl usage worker-7 --since 6h")
    usage.add_argument("vm", metavar="VM", nargs="?", default="", help="also the whole id of one that ended long ago")
    usage.add_argument("--since", metavar="TIME", default="", help=moment.ACCEPTED)
    usage.add_argument("--until", metavar="TIME", default="", help="the same; without it, until now")
    _accounting(subs)
    over = _add(subs, "over", "the proof that whatever was started under a handle is over",
                "vmagentctl over 3fa1c0de-...      # a VM id\n  vmagentctl over batch-4711         # a tag\n"
                "  vmagentctl over 6f1c2f9e-... && echo gone   # the id of the start command")
    over.add_argument("handle", metavar="HANDLE", help="a VM id, a tag, or the id of the command that started it")


def _capacity(subs: Any) -> None:
    capacity = _add(subs, "capacity", "what is promised and what is free; or how many such VMs can start",
                    "vmagentctl capacity --json\n  vmagentctl capacity --flavour small --count 50 --for 2h")
    capacityasking.add_options(capacity)
    capacity.add_argument("--owner", metavar="SUBJECT", help="for whom: a certificate subject")
    capacity.add_argument("--fqan", default="", metavar="FQAN", help="for which VO; with --owner")


def _top(subs: Any) -> None:
    top = _add(subs, "top", "what the VMs do right now, again and again; q ends it",
               "vmagentctl top\n  vmagentctl top --sort network --filter vo=vo.example.org --filter phase=ready\n"
               "  vmagentctl top --once --json")
    top.add_argument("--sort", choices=sorted(toplines.SORTS), default="cpu", help="what stands first (default cpu)")
    top.add_argument("--filter", type=asking.checked(toplines.wanted), action="append", default=[],
                     metavar="KIND=TEXT", help="only VMs with this owner=, vo= or phase=; several are allowed")
    top.add_argument("--every", type=asking.span, default=2, metavar="SPAN", help="how often it asks (default 2s)")
    top.add_argument("--once", action="store_true", help="one look, then end")


def _telemetry(subs: Any) -> None:
    told = _add(subs, "telemetry", "what the host and its VMs used in the last period: averages and peaks",
                "vmagentctl telemetry\n  vmagentctl telemetry 3fa1 --json\n  vmagentctl telemetry --cloudwatch --json")
    told.add_argument("vm", nargs="?", metavar="VM", help="this one alone")
    told.add_argument("--cloudwatch", action="store_true", help="under CloudWatch's names and units")


def _accounting(subs: Any) -> None:
    accounting = _add(subs, "accounting", "what was told to the grid's accounting, and tell it again",
                      "vmagentctl accounting status\n  vmagentctl accounting resend --month 2026-11 --dry-run")
    actions = accounting.add_subparsers(dest="does", metavar="ACTION", required=True)
    _add(actions, "status", "what is published, what waits", "vmagentctl accounting status --json")
    resend = _add(actions, "resend", "write the records of a month again, from what is kept",
                  "vmagentctl accounting resend --month 2026-11 --dry-run\n"
                  "  vmagentctl accounting resend --month 2026-11")
    resend.add_argument("--month", required=True, metavar="YYYY-MM", help="which month, by UTC")
    resend.add_argument("--dry-run", action="store_true", help="only say what would be written")


def _cache(actions: Any) -> None:
    fetch = _add(actions, "fetch", "have an image fetched before a VM wants it",
                 "vmagentctl images fetch el9-worker --wait\n"
                 "  vmagentctl images fetch --url https://images.example.org/el9.qcow2 --format qcow2 --sha512 ...")
    imageasking.add_fetch(fetch)
    fetch.add_argument("--wait", action="store_true", help="until it is here, and show how far it is")
    evict = _add(actions, "evict", "remove an image's file from the cache", "vmagentctl images evict el8-worker")
    pin = _add(actions, "pin", "keep an image's file in the cache, whatever room is needed",
               "vmagentctl images pin el9-worker --reason 'every morning'")
    unpin = _add(actions, "unpin", "take a pin away", "vmagentctl images unpin el9-worker")
    for sub in (evict, pin, unpin):
        imageasking.add_named(sub)
    for sub in (fetch, evict, pin, unpin):
        _reason(sub)


def _acting(subs: Any) -> None:
    start = _add(subs, "start", "start one VM, or several alike",
                 "vmagentctl start --owner '/DC=org/DC=example/CN=A User' --image tiny --flavour small --lifetime 2h "
                 "--network public")
    start.add_argument("--owner", required=True, metavar="SUBJECT", help="whose VM it is: a certificate subject")
    start.add_argument("--fqan", default="", metavar="FQAN", help="for which VO, such as /vo.example.org/Role=NULL")
    asking.add_options(start, asking.START, asking.REQUIRED)
    _reason(start)
    for name, about, examples in VERBS_ON_VMS:
        sub = _on_vms(subs, name, about, examples)
        if name in ("stop", "restart", "revert"):
            sub.add_argument("--grace", type=asking.span, metavar="SPAN", help="time for the guest to shut down")
        if name == "revert":
            sub.add_argument("--to", metavar="NAME", help="back to this snapshot; without it, to the golden image")
        if name in ("attach", "detach"):
            asking.add_options(sub, asking.ATTACHING, ("volume",))
        if name == "extend":
            sub.add_argument("--lifetime", type=asking.span, required=True, metavar="SPAN",
                             help="the new total run time")
    limits = _on_vms(subs, "limits", "show the limits of VMs: wanted, proven, counted; or change them",
                     "vmagentctl limits worker-7\n"
                     "  vmagentctl limits worker-7 --cpu-cap 50 --bandwidth-in 10mbit\n"
                     "  vmagentctl limits --tagged batch-4711 --yes --bandwidth-out 1gbit")
    asking.add_options(limits, asking.LIMITS)
    snapshot = _on_vms(subs, "snapshot", "the snapshots of VMs: look, take, delete, cancel",
                       "vmagentctl snapshot worker-7\n"
                       "  vmagentctl snapshot worker-7 --take before-upgrade --keep 1d\n"
                       "  vmagentctl snapshot worker-7 --delete before-upgrade")
    asking.add_options(snapshot, asking.SNAPSHOT)


def _revoking(subs: Any) -> None:
    revoke = _add(subs, "revoke", "say that an image is not to be trusted any more",
                  "vmagentctl revoke el9-worker --reason 'CVE-2026-0001'\n"
                  "  vmagentctl revoke el9-worker --action stop --yes\n"
                  "  vmagentctl revoke el9-worker --action report    # takes it back")
    imageasking.add_revocation(revoke)
    revoke.add_argument("--yes", action="store_true", help="do not ask, although it may concern several VMs")
    _reason(revoke)


def _adopting(subs: Any) -> None:
    adopt = _add(subs, "adopt", "make a running guest that others started one of the agent's; says what, unless --yes",
                 "vmagentctl adopt db1 --owner '/DC=org/DC=example/CN=A User' --lease 30d\n"
                 "  vmagentctl adopt db1 --owner '/DC=org/DC=example/CN=A User' --lease 30d --cpu-cap 200 --yes")
    adopt.add_argument("vm", metavar="VM", help="a domain's uuid, the beginning of it, or its name")
    adopt.add_argument("--owner", required=True, metavar="SUBJECT", help="whose it is: a certificate subject")
    adopt.add_argument("--lease", type=asking.span, required=True, metavar="SPAN", help="it is ended after this time")
    adopt.add_argument("--fqan", default="", metavar="FQAN", help="for which VO, such as /vo.example.org/Role=NULL")
    adopt.add_argument("--cpu-cap", type=_count, metavar="PERCENT", help="hold its CPU to this; 100 = one core")
    adopt.add_argument("--yes", action="store_true", help="do it; without this it is only said what would be")
    disown = _add(subs, "disown", "give back a guest that was adopted: it runs on, without a lease",
                  "vmagentctl disown db1 --reason 'stays where it is'")
    disown.add_argument("vm", metavar="VM")
    for sub in (adopt, disown):
        _reason(sub)


def _on_vms(subs: Any, name: str, about: str, examples: str) -> argparse.ArgumentParser:
    sub = _add(subs, name, about, examples)
    sub.add_argument("vms", nargs="*", metavar="VM")
    asking.add_options(sub, asking.SELECTOR)
    sub.add_argument("--yes", action="store_true", help="do not ask, although it may concern several VMs")
    _reason(sub)
    return sub


def _host(subs: Any) -> None:
    drain = _add(subs, "drain", "refuse new VMs; or ask whether this host can go down",
                 "vmagentctl drain                 # new VMs are refused from now on\n"
                 "  vmagentctl drain --check 10m     # can it go down in ten minutes? changes nothing")
    drain.add_argument("--check", type=asking.span, metavar="SPAN", help="only ask: will all VMs have ended by then?")
    _reason(drain)
    _reason(_add(subs, "undrain", "accept new VMs again", "vmagentctl undrain"))
    doctor = _add(subs, "doctor", "check everything the agent needs, and say how to mend it; works without the agent",
                  "vmagentctl doctor\n  vmagentctl doctor --config /etc/vmagent/vmagent.yaml")
    bundle = _add(subs, "bundle", "an archive for who is to help, without secrets; works without the agent",
                  "vmagentctl bundle\n  vmagentctl bundle -o for-support.tar.gz")
    bundle.add_argument("-o", "--output", type=Path, metavar="FILE",
                        help="where to (default vmagent-bundle-HOST-TIME.tar.gz here); never one that exists")
    for sub in (doctor, bundle):
        sub.add_argument("--config", type=Path, default=DEFAULT_CONFIG, metavar="FILE",
                         help=f"the agent's configuration (default {DEFAULT_CONFIG})")


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError("a number, 0 or more")
    return int(text)


def _reason(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", default="", metavar="TEXT", help="why; it stands in the audit and the reason trail")
