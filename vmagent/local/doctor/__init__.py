"""`vmagentctl doctor`: looks at everything the agent needs, and says how to mend what is wrong.

Rules: a check looks and never changes; it needs no running agent, and a hung part of the host costs it a deadline;
what could not be looked at is `unknown`, never `ok`; every finding that is not `ok` says how to mend it.
"""

from __future__ import annotations

import logging
from typing import Any, List, Mapping, Optional, Sequence, Tuple

from vmagent.config import Config
from vmagent.local.doctor import abilities, accounting, disk, hypervisor, network, rights, trust, volumes
from vmagent.local.doctor.findings import ORDER, Check, Facts, Finding, Host, Level, Result, unknown
from vmagent.local.doctor.thishost import ThisHost

__all__ = ["CHECKS", "Host", "Level", "Result", "ThisHost", "run", "worst"]

log = logging.getLogger("vmagent.local")
CHECKS: Tuple[Check, ...] = (*disk.CHECKS, *rights.CHECKS, *volumes.CHECKS, *hypervisor.CHECKS, *abilities.CHECKS,
                             *network.CHECKS, *trust.CHECKS, *accounting.CHECKS)


def run(config: Config, live: Optional[Mapping[str, Any]] = None, host: Optional[Host] = None) -> List[Result]:
    """Every check with its finding, in the order of the table.

    live: what the running agent answers to `status` or `doctor`; None = it does not answer.  host: None = this one.
    """
    facts = Facts(config, host or ThisHost(), live)
    return [_result(check, _examined(check, facts)) for check in CHECKS]


def worst(results: Sequence[Result]) -> Level:
    """The worst level found, for an exit code."""
    return max((result.level for result in results), key=ORDER.index, default=Level.OK)


def _result(check: Check, finding: Finding) -> Result:
    return Result(check.id, check.title, finding.level, finding.text, finding.mend)


def _examined(check: Check, facts: Facts) -> Finding:
    try:
        return check.run(facts)
    except Exception as error:  # noqa: BLE001 - edge: one check that breaks must not hide the others
        log.exception("the check %s broke", check.id)
        return unknown(f"could not be examined: {error}", "please report this")
