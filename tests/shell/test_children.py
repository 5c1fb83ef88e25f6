"""Foreign programs: what they say comes back, and what they do wrong stays bounded."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import confined
from tests.support.waiting import until
from vmagent import children
from vmagent.errors import Fault, FaultKind

ROOT = Path(__file__).resolve().parents[2]


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone before the opening, or between it and the reading
        return False


def fault_of(*argv: str, **kw: object) -> Fault:
    with pytest.raises(Fault) as caught:
        children.run(list(argv), **{"deadline_s": 20, **kw})
    return caught.value


def test_standard_output_comes_back() -> None:
    assert children.run(["printf", "%s", "a b;c"], 20) == b"a b;c"


@pytest.mark.skipif(not confined.wanted(), reason="only root can be given a capability to lose")
def test_what_reads_an_image_has_none_of_the_agent_s_capabilities() -> None:
    """As the unit starts the agent: others of its children have them, or nft would not work."""
    code = "from vmagent import children; ask = ['grep', 'CapEff', '/proc/self/status']; " \
           "print(children.run(ask, 20), children.run(ask, 20, limits=children.Limits(100, 5)))"
    said = subprocess.run([*confined.words(), sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True,
                          text=True, umask=confined.umask()).stdout  # fmt: skip
    agent, image = [int(word, 16) for word in re.findall(r"CapEff:\\t([0-9a-f]+)", said)]
    assert agent == 1 << 12 and image == 0, "CAP_NET_ADMIN, and nothing"


def test_text_goes_in_even_more_than_a_pipe_holds() -> None:
    text = b"x" * 1_000_000
    assert children.run(["cat"], 20, stdin=text) == text


def test_nothing_goes_through_a_shell() -> None:
    assert children.run(["printf", "%s", "$(id) `id` $HOME"], 20) == b"$(id) `id` $HOME"


def test_an_error_exit_is_told_in_the_program_s_own_words() -> None:
    fault = fault_of("ls", "/nonexistent-directory")
    assert isinstance(fault, children.ChildFailed)
    assert (fault.kind, fault.status) == (FaultKind.REFUSED, 2)
    assert "/nonexistent-directory" in fault.detail


def test_a_missing_program_is_refused_by_name() -> None:
    fault = fault_of("no-such-program-here")
    assert fault.kind is FaultKind.REFUSED
    assert "no-such-program-here is not installed" in fault.detail


def test_at_the_deadline_the_whole_group_is_killed(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    script = f"sleep 300 & echo $! > {pids}; echo $$ >> {pids}; wait"
    fault = fault_of("sh", "-c", script, deadline_s=0.5)
    assert fault.kind is FaultKind.UNKNOWN
    for pid in pids.read_text().split():
        until(lambda pid=pid: not alive(int(pid)), 5, f"{pid} is gone")


def test_a_child_that_closes_its_ends_and_stays_is_killed_too(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"echo $$ > {pid}; exec sleep 300 >&- 2>&-"
    assert fault_of("sh", "-c", script, deadline_s=0.5).kind is FaultKind.UNKNOWN
    until(lambda: not alive(int(pid.read_text())), 5)


def test_a_child_that_says_too_much_is_killed() -> None:
    fault = fault_of("yes", longest=100_000)
    assert fault.kind is FaultKind.REFUSED
    assert "more than 100000 bytes" in fault.detail


def test_a_long_complaint_is_cut() -> None:
    fault = fault_of("sh", "-c", "yes complaint | head -n 100000 >&2; exit 3")
    assert isinstance(fault, children.ChildFailed)
    assert fault.status == 3
    assert len(fault.complaint) <= children.LONGEST_COMPLAINT


def test_memory_is_limited_before_the_program_runs() -> None:
    python = os.path.realpath(sys.executable)
    greedy = [python, "-I", "-c", "x = bytearray(600 * 2**20); print('had it')"]
    assert children.run(greedy, 60) == b"had it\n"
    with pytest.raises(children.ChildFailed):
        children.run(greedy, 60, limits=children.Limits(memory_mib=300, cpu_s=30))


def test_cpu_time_is_limited() -> None:
    with pytest.raises(children.ChildFailed) as caught:
        children.run(["sh", "-c", "while :; do :; done"], 60, limits=children.Limits(memory_mib=300, cpu_s=1))
    assert caught.value.status < 0 or caught.value.status > 128


def test_files_it_makes_are_private_and_the_environment_is_fixed(tmp_path: Path) -> None:
    os.environ["VMAGENT_TEST_LEAK"] = "1"
    try:
        said = children.run(["sh", "-c", f"touch {tmp_path}/made; env; pwd"], 20).decode()
    finally:
        del os.environ["VMAGENT_TEST_LEAK"]
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o600
    assert "VMAGENT_TEST_LEAK" not in said
    assert said.endswith("\n/\n")


def test_what_has_limits_ends_with_the_agent(tmp_path: Path) -> None:
    """Killed with -9 while it waits."""
    pid = tmp_path / "pid"
    limits = "children.Limits(memory_mib=300, cpu_s=30, before=('env', '--'))"
    asleep = f"['sh', '-c', 'echo $$ > {pid}; exec sleep 300']"
    script = f"from vmagent import children; children.run({asleep}, 300, limits={limits})"
    agent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    child = 0
    try:
        child = int(until(lambda: pid.exists() and pid.read_text().strip(), 20, "the child"))
        assert alive(child)
        agent.kill()
        agent.wait(20)
        until(lambda: not alive(child), 20, "the child is gone too")
    finally:
        agent.kill()
        agent.wait(20)
        if child and alive(child):
            os.kill(child, signal.SIGKILL)
