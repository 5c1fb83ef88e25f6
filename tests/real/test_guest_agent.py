"""Snapshots of a guest with a live QEMU guest agent: the real one, which freezes a real file system for them.

The file system lies on the guest's own disk, from its 512th MiB on, so the snapshot holds it: in the state that a
freeze leaves, its journal is empty, which the superblock says.  The guest counts on while it can write there.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

import pytest

from tests.real.conftest import start_args, virsh
from tests.real.test_snapshots import files, in_state, marked, named, snapshots
from tests.support.agent import ROOT, Agent, Controller, vm_of
from tests.support.smalldisk import Small
from tests.support.waiting import until

PROGRAMS = ("qemu-ga", "mkfs.ext4")
pytestmark = pytest.mark.skipif(not all(map(shutil.which, PROGRAMS)), reason=f"puts {', '.join(PROGRAMS)} into a guest")
AT_MIB = 512
COUNTS = r"""#!/bin/sh
mkdir -p /data /run /var/run
losetup -o $((512 * 1024 * 1024)) /dev/loop0 /dev/vda
mkfs.ext4 -q -F -b 4096 /dev/loop0 16384
mount -t ext4 /dev/loop0 /data
mark() { echo "$1." | dd of=/dev/vda bs=1M seek=$2 conv=notrunc,fsync; }
cat > /hook << 'END'
#!/bin/sh
mark() { echo "$1." | dd of=/dev/vda bs=1M seek=$2 conv=notrunc,fsync; }
HOOK
END
chmod +x /hook
for port in /sys/class/virtio-ports/*; do
  [ "$(cat "$port/name")" = org.qemu.guest_agent.0 ] && qemu-ga -p "/dev/${port##*/}" -F/hook -t /run &
done
n=0
while :; do
  n=$((n + 1))
  echo $n > /data/count
  mark "COUNT $n" 900
  sleep 1
done
"""
# What happens at freeze ($1 = freeze, before) and thaw ($1 = thaw, after).
TELLS = """[ $1 = freeze ] && mark FREEZE 800 || mark THAW 801"""
SLOW = """[ $1 = freeze ] && mark FREEZE 800 && sleep 5
exit 0"""
# Silent from the freeze on for 40 s; what it was asked meanwhile it does afterwards, in order: it freezes then.
SILENT = """
if [ $1 = freeze ] && [ ! -e /once ]; then
  touch /once
  (sleep 40; kill -CONT $PPID) > /dev/null 2>&1 &
  mark SILENT 800
  kill -STOP $PPID
fi
[ $1 = thaw ] && [ -e /once ] && mark THAWED 801
exit 0"""


@pytest.fixture(scope="module")
def talking(base: Path) -> Tuple[Path, Dict[str, Any]]:
    """As `golden`, with the agent in it."""
    folder = base / "talking"
    more = [word for name in PROGRAMS for word in ("--program", name)]
    more += [word for name in ("virtio_console", "ext4", "crc32c_generic", "loop") for word in ("--module", name)]
    made = subprocess.run([sys.executable, str(ROOT / "share" / "build-try-image"), *more, str(folder)],
                          check=True, capture_output=True, text=True)
    return folder, json.loads(made.stdout)


@pytest.fixture
def host(agent: Agent, talking: Tuple[Path, Dict[str, Any]]) -> Iterator[Agent]:
    folder, image = talking
    agent.config["images"] = {"directory": str(folder), "catalogue": {"try": {
        "file": image["file"], "format": image["format"], "sha512": image["sha512"]}}}
    agent.config["snapshots"] = {"allowed": True, "job_s": 120}
    agent.start()
    yield agent


def started(host: Agent, controller: Controller, hook: str) -> str:
    script = base64.b64encode(COUNTS.replace("HOOK", hook).encode()).decode()
    vm = vm_of(controller.send("vm.start", start_args(user_data=script, keep_s=300)))
    controller.wait_phase(vm, "ready")
    until(lambda: "state='connected'" in virsh("dumpxml", f"vma-{vm}"), 60, "the guest's agent answers")
    until(lambda: count(place(host) / f"{vm}.qcow2"), 60, "the guest counts")
    return vm


def place(host: Agent) -> Path:
    """Where its overlays are."""
    return Path(host.config["images"].get("overlays") or Path(host.config["directories"]["state"]) / "overlays")


def count(path: Path) -> int:
    """How far the guest had counted, by this file."""
    return max((int(n) for n in re.findall(rb"COUNT (\d+)\.", path.read_bytes())), default=0)


def clean(path: Path) -> bool:
    """Whether the file system in this disk needs no recovery (ext4: s_magic at 56, s_feature_incompat at 96, 4)."""
    raw = path.with_suffix(".block")
    part = f"driver=raw,offset={AT_MIB << 20},size=4096,file.driver=qcow2,file.file.filename={path}"
    subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", "--image-opts", part, str(raw)],
                   check=True, capture_output=True)
    block = raw.read_bytes()[1024:]
    raw.unlink()
    assert block[56:58] == b"\x53\xef", "there is no file system"
    return not int.from_bytes(block[96:100], "little") & 4


def test_a_quiesced_snapshot_holds_a_clean_file_system_and_the_guest_goes_on(
    host: Agent, controller: Controller
) -> None:
    vm = started(host, controller, TELLS)
    overlay = named(host, vm, ".qcow2")
    for name, quiesce in (("still", "required"), ("alive", "no")):
        controller.reply(controller.send("vm.snapshot", {"vms": [vm], "name": name, "quiesce": quiesce}), "done")
    still, alive = snapshots(host, vm)
    assert (still["quiesced"], alive["quiesced"]) == (True, False)
    above = named(host, vm, ".snap-still.qcow2")
    assert clean(overlay), "what was frozen needs no recovery"
    assert not clean(above), "the same file system, not frozen: the check can tell"
    assert marked(overlay, "FREEZE.") and marked(above, "THAW."), "frozen before, thawed after"
    top = named(host, vm, ".snap-alive.qcow2")
    until(lambda: count(top) > count(overlay), 60, "it writes again")


@pytest.mark.parametrize("quiesce", ["required", "if_possible"])
def test_an_agent_that_falls_silent_over_a_freeze_leaves_no_guest_frozen(
    host: Agent, controller: Controller, quiesce: str
) -> None:
    """libvirt gives up waiting long before the agent comes to it: nothing may be taken, and nothing stay frozen."""
    vm = started(host, controller, SILENT)
    overlay = named(host, vm, ".qcow2")
    id = controller.send("vm.snapshot", {"vms": [vm], "name": "s", "quiesce": quiesce})
    reply = controller.reply(id, "failed", 120)
    problem = reply["result"]["members"][0]["problem"]
    assert problem["type"] == "snapshot-failed" and "may be frozen" in problem["detail"]
    assert marked(overlay, "SILENT.")
    counted = count(overlay)
    in_state(host, vm, "failed", 120)
    assert marked(overlay, "THAWED."), "it is over when the thaw was answered"
    until(lambda: count(overlay) > counted + 1, 60, "the guest writes again")
    assert files(host, vm) == [overlay]
    assert any("may be frozen" in one["why"] for one in host.ask("show", vm=vm)["state"]["reasons"])


def test_a_disk_that_fills_while_a_snapshot_is_taken(small: Small, host: Agent, controller: Controller) -> None:
    """There was room when it began; when QEMU makes the layer there is none: told, undone, thawed."""
    host.kill9()
    host.config["images"]["overlays"] = str(small.folder)
    host.start()
    vm = started(host, controller, SLOW)
    overlay = small.folder / f"{vm}.qcow2"
    id = controller.send("vm.snapshot", {"vms": [vm], "name": "s", "quiesce": "required"})
    until(lambda: marked(overlay, "FREEZE."), 60, "the guest is about to be frozen")
    small.fill(leave=128 << 10)  # for the guest's own journal; an empty layer is larger
    reply = controller.reply(id, "failed")
    problem = reply["result"]["members"][0]["problem"]
    assert problem["type"] == "snapshot-failed" and "no space left" in problem["detail"]
    in_state(host, vm, "failed")
    assert sorted(path.name for path in small.folder.glob(f"{vm}*")) == [overlay.name]
    small.empty()
    counted = count(overlay)
    until(lambda: count(overlay) > counted, 60, "the guest writes on")
    assert controller.wait_phase(vm, "ready")["incarnation"] == 0
