"""The command line of vmagent-site: every sub-command with its options, help and examples."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Tuple

from vmagent.core import asking, capacityasking, imageasking
from vmagent.site import accounts, appliance
from vmagent.site.settings import DEFAULT_PATH

CODES = """exit codes:
  0  done
  1  it failed, or not everybody answered
  2  the command line or the configuration is wrong
  3  refused: nothing was done, and it says why
  4  no answer in time: the broker is away, or the agent is; what became of it is not known
"""
VERBS_ON_VMS: Tuple[Tuple[str, str, str], ...] = (
    ("stop", "end VMs: ACPI, repeated, then destroy after the grace time", "stop wn1.example.org 3fa1c0de-... --wait"),
    ("kill", "end VMs at once", "kill wn1.example.org --tagged batch-4711"),
    ("pause", "stop the vCPUs of VMs; their lease goes on", "pause wn1.example.org 3fa1c0de-..."),
    ("resume", "let paused VMs run again", "resume wn1.example.org 3fa1c0de-..."),
    ("reboot", "ask VMs to reboot", "reboot wn1.example.org 3fa1c0de-..."),
    ("restart", "make VMs anew from their golden images, within their leases", "restart wn1.example.org 3fa1c0de-..."),
    ("revert", "throw away what VMs wrote: back to their golden images, or to a snapshot",
     "revert wn1.example.org --tagged batch-4711"),
    ("attach", "attach a data volume to running VMs", "attach wn1.example.org 3fa1c0de-... --volume reference-data:ro"),
    ("detach", "take a data volume away from running VMs", "detach wn1.example.org 3fa1c0de-... --volume ref-data"),
    ("extend", "change the agreed run time of VMs", "extend wn1.example.org 3fa1c0de-... --lifetime 4h"),
)
WAIT_S = 900
ANSWER_S = 30
LISTEN_S = 5
TOP_S = 5


def parser() -> argparse.ArgumentParser:
    """All of it."""
    top = argparse.ArgumentParser(
        prog="vmagent-site", description="Start, watch and end VMs on the hosts of a site, over its message broker.",
        epilog=CODES, formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _common(top, DEFAULT_PATH, False)
    subs = top.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    _start(subs)
    for name, about, example in VERBS_ON_VMS:
        _on_vms(subs, name, about, f"vmagent-site {example}")
    limits = _on_vms(subs, "limits", "show the limits of VMs: wanted and proven; or change them",
                     "vmagent-site limits wn1.example.org 3fa1c0de-...\n"
                     "  vmagent-site limits wn1.example.org 3fa1c0de-... --cpu-cap 50 --bandwidth-in 10mbit --wait")
    asking.add_options(limits, asking.LIMITS)
    snapshot = _on_vms(subs, "snapshot", "the snapshots of VMs: look, take, delete, cancel",
                       "vmagent-site snapshot wn1.example.org 3fa1c0de-... --take before-upgrade --keep 1d --wait")
    asking.add_options(snapshot, asking.SNAPSHOT)
    _query(subs)
    _looking(subs)
    for name, about in (("drain", "refuse new VMs on a host"), ("undrain", "accept new VMs again")):
        sub = _add(subs, name, about, f"vmagent-site {name} wn1.example.org --reason 'new kernel'")
        _host(sub)
        _asked(sub)
    sub = _add(subs, "revoke", "say on a host, or on all, that an image is not to be trusted any more",
               "vmagent-site revoke wn1.example.org el9-worker --reason 'CVE-2026-0001' --revocation 7\n"
               "  vmagent-site revoke '*' el9-worker --action stop --reason 'CVE-2026-0001' --revocation 7")
    sub.add_argument("host", metavar="HOST", help="the host's name; * = every host")
    imageasking.add_revocation(sub)
    _asked(sub)
    _images(subs)
    _collecting(subs)
    _pki(subs)
    return top


def _common(parser: argparse.ArgumentParser, config: Any, json: Any) -> None:
    parser.add_argument("--config", type=Path, default=config, metavar="FILE",
                        help=f"site, broker and key (default {DEFAULT_PATH})")
    parser.add_argument("--json", action="store_true", default=json, help="the answer as one line of JSON")


def _add(subs: Any, name: str, about: str, examples: str) -> argparse.ArgumentParser:
    sub: argparse.ArgumentParser = subs.add_parser(
        name, help=about, description=about[0].upper() + about[1:] + ".",
        epilog=f"examples:\n  {examples}\n\n{CODES}", formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _common(sub, argparse.SUPPRESS, argparse.SUPPRESS)
    return sub


def _host(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("host", metavar="HOST", help="the host's name, as its agent is configured")


def _asked(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--reason", default="", metavar="TEXT", help="why; it stands in the VMs' reason trail")
    sub.add_argument("--timeout", type=asking.span, metavar="SPAN",
                     help=f"how long to wait for an answer (default {ANSWER_S}s; with --wait {WAIT_S // 60}m)")


def _start(subs: Any) -> None:
    sub = _add(subs, "start", "start one VM, or several alike",
               "vmagent-site start wn1.example.org --image tiny --flavour small --lifetime 2h --network public --wait\n"
               "  vmagent-site start wn1.example.org --image tiny --cores 2 --memory-mib 2048 --disk-gib 10 \\\n"
               "      --lifetime 1d --count 20 --atomic --tag batch-4711 --wait\n"
               "  vmagent-site start wn1.example.org --ovf worker.ova --image worker-7 --lifetime 1d \\\n"
               "      --map-network 'VM Network=public' --user-data worker.yaml --ssh-key ~/.ssh/id_ed25519.pub")
    _host(sub)
    asking.add_options(sub, asking.START, ("lifetime",))
    sub.add_argument("--ovf", metavar="FILE", help="take sizes, networks and disk from an .ovf or .ova")
    sub.add_argument("--map-network", type=asking.checked(appliance.network_map), action="append",
                     metavar="OVFNAME=TYPE[=ADDRESS,...]",
                     help="which network type of the site the envelope's network is; with --ovf; may be repeated")
    sub.add_argument("--image-url", metavar="URL",
                     help="where the envelope's disk stands for the agents to fetch; with --ovf, instead of --image")
    sub.add_argument("--owner", metavar="SUBJECT", help="whose VM it is: a certificate subject")
    sub.add_argument("--fqan", default="", metavar="FQAN", help="for which VO; with --owner")
    sub.add_argument("--wait", action="store_true", help="wait until every VM is ready, and show the way there")
    _asked(sub)


def _on_vms(subs: Any, name: str, about: str, examples: str) -> argparse.ArgumentParser:
    sub = _add(subs, name, about, examples)
    _host(sub)
    sub.add_argument("vms", nargs="*", metavar="VM", help="VM ids")
    asking.add_options(sub, asking.SELECTOR)
    if name in ("attach", "detach"):
        asking.add_options(sub, asking.ATTACHING, ("volume",))
    if name in ("stop", "restart", "revert"):
        sub.add_argument("--grace", type=asking.span, metavar="SPAN", help="time for the guest to shut down")
    if name == "revert":
        sub.add_argument("--to", metavar="NAME", help="back to this snapshot; without it, to the golden image")
    if name == "extend":
        sub.add_argument("--lifetime", type=asking.span, required=True, metavar="SPAN", help="the new total run time")
    sub.add_argument("--wait", action="store_true", help="wait until it is done")
    _asked(sub)
    return sub


def _query(subs: Any) -> None:
    sub = _add(subs, "query", "VMs of one host, asked now, with everything about them",
               "vmagent-site query wn1.example.org --all --json\n"
               "  vmagent-site query wn1.example.org 3fa1c0de-... --occi")
    _host(sub)
    sub.add_argument("vms", nargs="*", metavar="VM", help="VM ids")
    asking.add_options(sub, asking.SELECTOR)
    sub.add_argument("--occi", action="store_true", help="in the words of OCCI 1.2: text, or with --json a document")
    sub.add_argument("--timeout", type=asking.span, metavar="SPAN",
                     help=f"how long to wait for an answer (default {ANSWER_S}s)")


def _looking(subs: Any) -> None:
    sub = _add(subs, "list", "every VM of every host, asked now; or as the collector knows them",
               "vmagent-site list\n  vmagent-site list --json\n  vmagent-site list --collected --ended")
    _listen(sub)
    sub.add_argument("--collected", action="store_true", help="from the collector's database; asks nobody")
    sub.add_argument("--ended", action="store_true", help="with --collected: also those that ended lately")
    _database(sub)
    sub = _add(subs, "report", "the state of every host, asked now; or of one",
               "vmagent-site report\n  vmagent-site report wn1.example.org --json")
    sub.add_argument("host", nargs="?", metavar="HOST")
    _listen(sub)
    _capacity(subs)
    _glue(subs)
    _add(subs, "watch", "events of all hosts as they come, until interrupted",
         "vmagent-site watch\n  vmagent-site watch --json | jq .type")


def _capacity(subs: Any) -> None:
    sub = _add(subs, "query-capacity", "how many such VMs can start on a host, or on all, now and later; why not more",
               "vmagent-site query-capacity wn1.example.org --flavour small --count 20 --for 2h\n"
               "  vmagent-site query-capacity '*' --flavour small --count 500 --network public --json")
    sub.add_argument("host", metavar="HOST", help="the host's name; * = every host")
    capacityasking.add_options(sub)
    sub.add_argument("--owner", metavar="SUBJECT", help="for whom: a certificate subject")
    sub.add_argument("--fqan", default="", metavar="FQAN", help="for which VO; with --owner")
    _listen(sub)


def _glue(subs: Any) -> None:
    sub = _add(subs, "glue", "the site's GLUE 2.1 document, made from the shares of its hosts",
               "vmagent-site glue --gocdb-id 12345G0\n  vmagent-site glue --collected > site.json\n"
               "  vmagent-site glue wn1.json wn2.json --url https://cloud.example.org/")
    sub.add_argument("files", nargs="*", metavar="FILE", help="shares as `vmagentctl glue` prints them; asks nobody")
    sub.add_argument("--gocdb-id", metavar="ID", help="the service's id in the grid's registry")
    sub.add_argument("--url", metavar="URL", help="the endpoint's, instead of the hosts' broker")
    sub.add_argument("--status-url", metavar="URL", help="where people see the site's status")
    sub.add_argument("--aup", metavar="URL", help="the acceptable use policy")
    sub.add_argument("--collected", action="store_true", help="from the collector's database; asks nobody")
    _listen(sub)
    _database(sub)


def _listen(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--timeout", type=asking.span, default=LISTEN_S, metavar="SPAN",
                     help=f"how long to wait for hosts (default {LISTEN_S}s); ends sooner when all known ones answered")


def _collecting(subs: Any) -> None:
    sub = _add(subs, "collect", "write every event of the site into the collector's database, until a signal comes",
               "vmagent-site collect\n  vmagent-site collect --once --json\n"
               "  vmagent-site collect --database postgresql://collector@db.example.org/vmagent")
    sub.add_argument("--once", action="store_true", help="end when nothing more comes")
    _database(sub)


    sub = _add(subs, "usage", "what was used in a month, by VO, user or VM; from the collector's database",
               "vmagent-site usage --month 2026-11\n"
               "  vmagent-site usage --vo vo.example.org --by user --month 2026-11\n"
               "  vmagent-site usage --by vm --csv > november.csv")
    sub.add_argument("--vo", metavar="VO", help="only this VO's")
    sub.add_argument("--month", metavar="YYYY-MM", help="UTC (default: this month)")
    sub.add_argument("--by", choices=tuple(accounts.BY), default="vo", help="what to sum by (default vo)")
    sub.add_argument("--csv", action="store_true", help="comma-separated, in seconds and bytes, with all members")
    _database(sub)
    sub = _add(subs, "capacity", "what the whole site can take now; from the collector's database",
               "vmagent-site capacity\n  vmagent-site capacity --json")
    _database(sub)
    sub = _add(subs, "top", "every VM with what it does now, again and again; from the collector's database",
               "vmagent-site top\n  vmagent-site top --once --json")
    sub.add_argument("--once", action="store_true", help="look once and end")
    sub.add_argument("--interval", type=asking.span, default=TOP_S, metavar="SPAN",
                     help=f"time between two looks (default {TOP_S}s)")
    _database(sub)


def _database(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--database", metavar="PLACE", help="a file, or postgresql://USER@HOST/NAME (default: database "
                                                         "in the configuration)")


def _images(subs: Any) -> None:
    images = _add(subs, "images", "the images of a host: look, fetch, evict, pin, revoke",
                  "vmagent-site images list wn1.example.org\n"
                  "  vmagent-site images fetch wn1.example.org el9-worker --wait\n"
                  "  vmagent-site images evict wn1.example.org el8-worker --reason 'not used any more'")
    actions = images.add_subparsers(dest="does", metavar="ACTION", required=True)
    for name, about, teach in (
        ("list", "the images that a host knows, and whether they are trusted", None),
        ("fetch", "have an image fetched before a VM wants it", imageasking.add_fetch),
        ("evict", "remove an image's file from a host's cache", imageasking.add_named),
        ("pin", "keep an image's file in a host's cache, whatever room is needed", imageasking.add_named),
        ("unpin", "take a pin away", imageasking.add_named),
        ("revoke", "say on a host, or on all, that an image is not to be trusted any more", imageasking.add_revocation),
    ):
        whose = "wn1.example.org el9-worker" if teach else "wn1.example.org"
        sub = _add(actions, name, about, f"vmagent-site images {name} {whose}")
        _host(sub)
        if teach is not None:
            teach(sub)
        if name == "fetch":
            sub.add_argument("--wait", action="store_true", help="until it is here, and show how far it is")
        elif name == "evict":
            sub.set_defaults(wait=True)
        _asked(sub)


def _pki(subs: Any) -> None:
    pki = _add(subs, "pki", "a small certificate authority for trying things out",
               "vmagent-site pki init ./pki --name 'My test CA'\n  vmagent-site pki issue ./pki controller\n"
               "  vmagent-site pki issue ./pki broker.example.org --kind server --san broker.example.org\n"
               "  vmagent-site pki revoke ./pki controller")
    actions = pki.add_subparsers(dest="action", metavar="ACTION", required=True)
    init = actions.add_parser("init", help="make the CA and its empty revocation list")
    init.add_argument("directory", type=Path, metavar="DIRECTORY")
    init.add_argument("--name", default="vmagent test CA", help="the CA's common name")
    issue = actions.add_parser("issue", help="make a key and a certificate for it")
    issue.add_argument("directory", type=Path, metavar="DIRECTORY")
    issue.add_argument("name", metavar="NAME", help="the certificate's common name")
    issue.add_argument("--kind", choices=("client", "server", "host"), default="client", help="(default client)")
    issue.add_argument("--days", type=int, default=365, help="how long it is valid (default 365)")
    issue.add_argument("--san", action="append", default=[], metavar="NAME", help="DNS name or IP address; repeatable")
    revoke = actions.add_parser("revoke", help="revoke certificates, or only renew the revocation list")
    revoke.add_argument("directory", type=Path, metavar="DIRECTORY")
    revoke.add_argument("names", nargs="*", metavar="NAME", help="common names of certificates that were issued here")

