"""libvirt's errors -> what they mean for the next step of the loop.

Decided on numbers only: (error domain, code), then code, then the errno that a system error carries.  What stands in no
table is UNKNOWN: nobody can say whether it happened, so it is observed again.
"""

from __future__ import annotations

import errno
import os
from typing import Mapping, Tuple

import libvirt

from vmagent import folders
from vmagent.errors import Fault, FaultKind

_LINK = (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE)
# A broken connection speaks of itself from these two domains with any of these codes.
_BROKEN = (
    libvirt.VIR_ERR_INTERNAL_ERROR,
    libvirt.VIR_ERR_SYSTEM_ERROR,
    libvirt.VIR_ERR_RPC,
    libvirt.VIR_ERR_OPERATION_FAILED,
)
BY_ORIGIN: Mapping[Tuple[int, int], FaultKind] = {(d, c): FaultKind.AWAY for d in _LINK for c in _BROKEN}
BY_CODE: Mapping[int, FaultKind] = {
    libvirt.VIR_ERR_NO_CONNECT: FaultKind.AWAY,
    libvirt.VIR_ERR_INVALID_CONN: FaultKind.AWAY,
    libvirt.VIR_ERR_AUTH_FAILED: FaultKind.AWAY,
    libvirt.VIR_ERR_AUTH_CANCELLED: FaultKind.AWAY,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE: FaultKind.AWAY,
    libvirt.VIR_ERR_NO_DOMAIN: FaultKind.GONE,
    libvirt.VIR_ERR_INVALID_DOMAIN: FaultKind.GONE,
    libvirt.VIR_ERR_OPERATION_TIMEOUT: FaultKind.BUSY,
    libvirt.VIR_ERR_RESOURCE_BUSY: FaultKind.BUSY,
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE: FaultKind.BUSY,
    libvirt.VIR_ERR_NO_SUPPORT: FaultKind.REFUSED,
    libvirt.VIR_ERR_INVALID_ARG: FaultKind.REFUSED,
    libvirt.VIR_ERR_XML_ERROR: FaultKind.REFUSED,
    libvirt.VIR_ERR_XML_DETAIL: FaultKind.REFUSED,
    libvirt.VIR_ERR_XML_INVALID_SCHEMA: FaultKind.REFUSED,
    libvirt.VIR_ERR_DOM_EXIST: FaultKind.REFUSED,
    libvirt.VIR_ERR_OPERATION_DENIED: FaultKind.REFUSED,
    libvirt.VIR_ERR_ACCESS_DENIED: FaultKind.REFUSED,
    libvirt.VIR_ERR_CONFIG_UNSUPPORTED: FaultKind.REFUSED,
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED: FaultKind.REFUSED,
    libvirt.VIR_ERR_OPERATION_UNSUPPORTED: FaultKind.REFUSED,
}
_CLOSED = (libvirt.VIR_ERR_AUTH_FAILED, libvirt.VIR_ERR_AUTH_CANCELLED, libvirt.VIR_ERR_AUTH_UNAVAILABLE)
_DENIED = (errno.EACCES, errno.EPERM)
NOT_BUILT = (libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_CONFIG_UNSUPPORTED)
"""What opening a URI says where its driver was left out: by the daemon, or by the library itself."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)


def kind(origin: int, code: int, number: int) -> FaultKind:
    """origin: VIR_FROM_*; code: VIR_ERR_*; number: the errno of a VIR_ERR_SYSTEM_ERROR, else anything."""
    if (origin, code) in BY_ORIGIN:
        return BY_ORIGIN[origin, code]
    if code == libvirt.VIR_ERR_SYSTEM_ERROR and number in _FULL:
        return FaultKind.FULL
    return BY_CODE.get(code, FaultKind.UNKNOWN)


def closed(error: libvirt.libvirtError) -> str:
    """That libvirt does not let this user in, and what would; "" = the error says something else."""
    denied = error.get_error_code() == libvirt.VIR_ERR_SYSTEM_ERROR and error.get_int1() in _DENIED
    if not (denied or error.get_error_code() in _CLOSED):
        return ""
    us = folders.user(os.geteuid())
    return (f"libvirt: {error.get_error_message()}: it does not let {us} in; "
            f"usermod -aG libvirt {us}, then restart the agent")


def fault(error: libvirt.libvirtError) -> Fault:
    """The Fault for an error; its text is libvirt's, for people."""
    if error.get_error_code() is None:  # the binding's own complaint, without libvirt behind it
        return Fault(FaultKind.UNKNOWN, str(error))
    number = error.get_int1()
    return Fault(
        kind(error.get_error_domain(), error.get_error_code(), -1 if number is None else number),
        f"libvirt: {error.get_error_message()}",
    )
