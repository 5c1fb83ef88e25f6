"""The `vmagent` command: arguments and exit codes; everything else is the daemon's.

Exit codes, part of the contract with systemd and scripts:

    0   stopped on request; with --check-config: nothing is wrong
    1   the agent failed, or could not begin with what it found on this host (a directory that it may not use): that
        may mend, so systemd starts it again.  With --guard: the default drop is not in force
    2   wrong arguments, errors in the configuration, or a store that a newer version wrote: starting again does not
        help
"""

from __future__ import annotations

import argparse
import socket
import sys
from pathlib import Path
from typing import List, Optional

from vmagent import __version__, configfile
from vmagent.errors import Fault, Problem, Problems

OK, FAILED, USAGE = 0, 1, 2

_EXAMPLES = """\
examples:
  vmagent                                        run with /etc/vmagent/vmagent.yaml and its drop-ins
  vmagent --check-config                         all errors of the configuration at once
  vmagent --config try/vmagent.yaml --show-config    what would be in force, and which file says it
  vmagent --guard                                at boot, before libvirt: drop what has no rules yet

exit codes:
  0  stopped on request, or nothing wrong with the configuration
  1  the agent failed (systemd starts it again)
  2  wrong arguments or configuration, or a newer version's store (starting again does not help)

signals:
  TERM, INT  stop; guests, rules and limits stay as they are
  HUP        read the configuration again
"""


def arguments() -> argparse.ArgumentParser:
    """The command line, for --help, the tests and the manual."""
    parser = argparse.ArgumentParser(
        prog="vmagent",
        description="Starts, holds and ends virtual machines on this host for the controllers of a site.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", metavar="FILE", type=Path, default=configfile.DEFAULT_PATH, help="configuration (%(default)s)"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check-config", action="store_true", help="tell everything that is wrong with it, and end")
    what.add_argument("--show-config", action="store_true", help="print what is in force with its sources, and end")
    what.add_argument("--guard", action="store_true",
                      help="put the default drop for our interfaces in force (nft), and end; guests' rules stay")
    parser.add_argument("--version", action="version", version=f"vmagent {__version__}")
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; returns the exit code."""
    options = arguments().parse_args(argv)
    try:
        if options.show_config:
            sys.stdout.write(configfile.show(configfile.read_raw(options.config, socket.getfqdn())))
            return OK
        # At boot no name server answers yet, and the guard needs no name.
        name = socket.gethostname() if options.guard else socket.getfqdn()
        config = configfile.read(options.config, name, check_files=options.check_config)
        if options.guard:
            return _guard(config.policy.instance)
    except Problem as problem:
        return _refused(problem)
    if options.check_config:
        print(f"{options.config}: nothing wrong")
        return OK
    from vmagent import daemon  # here, because it takes the reactor, which no other command needs

    return daemon.run(config, options.config)


def _guard(instance: str) -> int:
    """Problem `configuration`: the prefix would cut off an interface of the host."""
    from vmagent.host import firewall, interfaces  # here, because no other command needs them

    interfaces.ours_alone(instance)
    try:
        firewall.guard(instance)
    except Fault as fault:
        print(f"vmagent: the default drop is not in force: {fault.detail}", file=sys.stderr)
        return FAILED
    print(f"dropped from now on: everything of {instance}* that has no rules of its own")
    return OK


def _refused(problem: Problem) -> int:
    problems = problem.problems if isinstance(problem, Problems) else (problem,)
    for one in problems:
        print(one.detail, file=sys.stderr)
    plural = "s" if len(problems) > 1 else ""
    print(f"vmagent: {len(problems)} error{plural} in the configuration", file=sys.stderr)
    return USAGE


if __name__ == "__main__":
    sys.exit(main())
