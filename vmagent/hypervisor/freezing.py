"""A guest's file systems: frozen for an instant through its agent, and let go again whatever comes of it.

Theory.  The agent is one thread that answers in order.  A freeze that it did not answer in time it may still come to,
so such a freeze counts as one until a thaw *after* it is answered; an answer of "no" is an answer.  Nobody else can
thaw a guest, and where no agent holds its end of the channel nobody has frozen it that could be asked.

Rules

1. Before anything is frozen a thaw is asked for and must be answered: it undoes what an earlier life of ours may have
   left, and whoever does not answer that is not asked to freeze.
2. What was frozen is thawed; when that is not answered it is said with a Fault, so that the job is not over: it is
   done again, and begins with a thaw, until there is an answer.
3. libvirt's own waiting is bounded by AGENT_S for each question, twice where it first has to find out whether anybody
   listens.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import libvirt

from vmagent.core.domainxml import AGENT_CHANNEL
from vmagent.errors import Fault, FaultKind

AGENT_S = 10  # a guest agent that takes longer to answer is silent
_SILENT = (libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_AGENT_UNSYNCED, libvirt.VIR_ERR_OPERATION_TIMEOUT)
MAYBE_FROZEN = "its guest agent does not answer, so its file systems may be frozen: they are let go when it does"


def freeze(domain: libvirt.virDomain) -> str:
    """"" when its file systems are frozen, else why not; then they are not.

    Fault REFUSED: nobody can say, because neither the freeze nor a thaw after it was answered.
    """
    if not has_agent(domain):
        return "no guest agent answers in it"
    try:
        domain.agentSetResponseTimeout(AGENT_S, 0)
        domain.fsFreeze()
    except libvirt.libvirtError as error:
        went_away = error.get_error_code() in _SILENT and not has_agent(domain)
        if went_away or not _thawed(domain):
            raise Fault(FaultKind.REFUSED, MAYBE_FROZEN) from error
        return f"libvirt: {error.get_error_message()}"
    return ""


def thaw(domain: libvirt.virDomain) -> None:
    """Let its file systems be written again; nothing happens to one that is not frozen.

    Fault UNKNOWN: its agent did not answer, so they may be frozen.
    """
    if not _thawed(domain):
        raise Fault(FaultKind.UNKNOWN, MAYBE_FROZEN)


def _thawed(domain: libvirt.virDomain) -> bool:
    """Whether the agent answered a thaw, or nobody is there who could have frozen anything."""
    if not domain.isActive() or not has_agent(domain):
        return True
    try:
        domain.agentSetResponseTimeout(AGENT_S, 0)
        domain.fsThaw()
    except libvirt.libvirtError as error:
        return error.get_error_code() not in _SILENT
    return True


def has_agent(domain: libvirt.virDomain) -> bool:
    """Whether a guest agent holds its end of the channel."""
    root = ElementTree.fromstring(domain.XMLDesc(0))
    channels = root.iterfind(f"devices/channel/target[@name='{AGENT_CHANNEL}']")
    return any(target.get("state") == "connected" for target in channels)
