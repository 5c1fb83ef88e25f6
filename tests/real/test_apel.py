"""From a guest on real QEMU to a record that APEL would take: over the store, the spool and the broker."""

from __future__ import annotations

import datetime
from typing import Any, Dict, List

from tests.real.conftest import start_args
from tests.support import apel_reader
from tests.support.agent import SITE, Agent, Controller, vm_of
from tests.support.waiting import until

QUEUE = f"/queue/vmagent.{SITE}.apel"


def received(controller: Controller) -> List[Dict[str, str]]:
    """Records of all messages so far, in the order in which they came."""
    texts = [frame.body for frame in controller.link.messages("apel")]
    return [record for text in texts for record in apel_reader.load(text if isinstance(text, str) else text.decode())]


def test_what_a_guest_used_reaches_the_accounting_over_the_broker(agent: Agent, controller: Controller) -> None:
    agent.config["accounting"] = {"apel": {"site_name": "EXAMPLE-SITE", "destination": QUEUE}}
    controller.link.subscribe(QUEUE)
    agent.start()
    args = start_args(flavour=None, cores=1, memory_mib=128, disk_gib=1, cpu_cap_core_percent=50, networks=None,
                      name="a guest")
    owner = {"subject": "/DC=org/DC=example/CN=J\u00fcrgen %% X", "fqan": "/vo.example/Role=NULL"}
    vm = vm_of(controller.send("vm.start", args, on_behalf_of=owner))
    controller.wait_phase(vm, "ready")
    controller.reply(controller.send("vm.kill", {"vms": [vm]}), "done")
    month = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m")
    planned: Any = until(lambda: _records(agent, month), 30, "the end is booked")
    assert planned["messages"] == 1 and agent.ask("resend", month=month)["records"] == planned["records"]
    until(lambda: any(one["VMUUID"].startswith(vm) for one in received(controller)), 70, "the record")
    record = next(one for one in received(controller) if one["VMUUID"].startswith(vm))
    assert record["SiteName"] == "EXAMPLE-SITE" and record["Status"] == "completed"
    assert record["GlobalUserName"] == r"/DC=org/DC=example/CN=J\xC3\xBCrgen \x25\x25 X"
    assert (record["MachineName"], record["ImageId"]) == ("a guest", "try")
    assert (record["CpuCount"], record["Memory"], record["Disk"]) == ("0.5", "128", "1")
    assert apel_reader.vo(record["FQAN"])[0] == "vo.example"
    lived = int(record["EndTime"]) - int(record["StartTime"])
    assert abs(int(record["WallDuration"]) + int(record["SuspendDuration"]) - lived) <= 1
    database = apel_reader.Database()
    for frame in controller.link.messages("apel"):
        database.take(frame.body if isinstance(frame.body, str) else frame.body.decode())
    until(lambda: agent.ask("accounting")["apel"]["waiting"] == 0, 70, "the spool is empty")


def _records(agent: Agent, month: str) -> Any:
    planned = agent.ask("resend", month=month, dry_run=True)
    return planned if planned.get("records") else None
