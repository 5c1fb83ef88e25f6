"""render/apel.py against a reader that is as strict as APEL's: each of its traps (FORMATS 1.1 to 1.6)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Dict, List

import pytest

from tests.support import apel_reader
from tests.support.usage_rows import JANE, VM, row, use
from vmagent.core import walltime
from vmagent.render import apel, owners, words

DATA = Path(__file__).resolve().parents[1] / "data" / "accounting"
SITE = apel.Publisher("EXAMPLE-SITE", "vmagent")
EVIL = ("a%%b", "%%", "x\nVMUUID: y", "x\r\n\r\nEndTime: 1", "M\u00fcller \u2603", "n" * 300, "\u00fc" * 300, "None",
        "NULL", "null", "", "  ", "\x00\x1b[2J", "%%%", "ends%", "%begins", "a: b", "\ud800", "\u0085\u2028")


def fields(one: Dict[str, Any], publisher: apel.Publisher = SITE) -> Dict[str, str]:
    """What the reader makes of this row alone."""
    records, wrong = apel.of([one], publisher)
    assert not wrong
    (message,) = apel.messages(records)
    (read,) = apel_reader.load(message)
    return read


def same_as_golden(name: str, text: str) -> None:
    """VMAGENT_REGENERATE=1 writes it anew; look at the difference before you commit it."""
    if os.environ.get("VMAGENT_REGENERATE") == "1":
        (DATA / name).write_text(text, encoding="ascii")
    assert text == (DATA / name).read_text(encoding="ascii")


def test_the_whole_text() -> None:
    running = row("2026-11-20T23:00:00Z", "2026-11-21T00:00:00Z", started_at="2026-11-20T22:30:00.500Z", period=2)
    running["footprint"].update(benchmark={"name": "HEPSPEC06", "per_core": 12.5}, public_addresses=["192.0.2.7/24"])
    running["total"] = use(5000.9, 2, 399.2, gib_in=2.6, gib_out=1.2)
    ended = row("2026-11-20T23:00:00Z", "2026-11-20T23:20:00Z", vm=VM[:-1] + "2", status="completed", final=True,
                ended_at="2026-11-20T23:20:00.100Z", outcome="finished")
    ended["footprint"].update(cpu_cap_core_percent=50)
    records, wrong = apel.of([running, ended], SITE)
    assert not wrong
    (message,) = apel.messages(records)
    same_as_golden("cloud.txt", message)
    first, second = apel_reader.load(message)
    assert (first["Status"], second["Status"]) == ("completed", "started")


@pytest.mark.parametrize("text", EVIL)
def test_a_hostile_name_spoils_neither_its_record_nor_its_neighbours(text: str) -> None:
    hostile = row(name=text, owner={"subject": text, "fqan": text, "vo": text}, flavour=text, tags=[text],
                  image={"id": text, "sha512": "", "format": "raw"})
    hostile["footprint"]["benchmark"] = {"name": text, "per_core": 1.0}
    neighbour = row(vm=VM[:-1] + "2")
    records, _ = apel.of([hostile, neighbour], SITE)
    (message,) = apel.messages(records)
    read = apel_reader.load(message)
    assert [one["VMUUID"] for one in read] == [f"{vm}/1/1@wn1.example.org.site-a" for vm in (VM, VM[:-1] + "2")]
    assert read[1] == fields(neighbour)
    assert read[0]["ImageId"] and read[0]["MachineName"]
    assert all(len(value) <= 255 for value in read[0].values())


def test_a_message_is_ascii_and_escapes_are_those_of_openssl() -> None:
    read = fields(row(name="M\u00fcller 100%%", owner={**JANE, "subject": "/DC=org/CN=J\u00fcrgen"}))
    assert read["MachineName"] == r"M\xC3\xBCller 100\x25\x25"
    assert read["GlobalUserName"] == r"/DC=org/CN=J\xC3\xBCrgen"


def test_a_word_is_never_cut_inside_an_escape() -> None:
    for length in range(1, 40):
        text = words.line("\u00fc" * 20, length)
        assert text == "\\xC3\\xBC" * (length // 8) + "\\xC3" * (length % 8 >= 4)
    assert words.line("backslash\\", 10) == "backslash\\"


@pytest.mark.parametrize("word", ["None", "NULL", "none", "nUlL", "", " "])
def test_null_words_are_never_sent(word: str) -> None:
    read = fields(row(name=word, image={"id": word}, owner={"subject": word, "fqan": word, "vo": word}))
    assert read["MachineName"] == VM and read["ImageId"] == apel.UNKNOWN_IMAGE
    assert "GlobalUserName" not in read and "FQAN" not in read
    records, _ = apel.of([row(name=word)], SITE)
    values = [line.partition(":")[2].strip().lower() for line in records[0].text.splitlines()]
    assert not set(values) & set(apel_reader.NULLS)


def test_what_is_always_there() -> None:
    for status in ("started", "suspended", "completed"):
        read = fields(row(status=status))
        assert read["Status"] == status
        assert {"ImageId", "Status", "RecordCreateTime", "CpuCount", "StartTime", "WallDuration"} <= set(read)
        assert ("EndTime" in read) == (status == "completed")


def test_times_and_counters_are_whole_and_cumulative() -> None:
    one = row("2026-11-21T09:00:00Z", "2026-11-21T10:00:00Z", started_at="2026-11-20T08:15:00.700Z", period=25)
    one["total"] = use(90000.99, 2, 3600.99)
    read = fields(one)
    assert read["StartTime"] == str(int(walltime.seconds("2026-11-20T08:15:00Z")))
    assert (read["WallDuration"], read["SuspendDuration"], read["CpuDuration"]) == ("90000", "3600", "180001")


def test_two_meanings_of_cpu_duration() -> None:
    one = row()
    assert fields(one)["CpuDuration"] == "7200"
    assert fields(one, apel.Publisher("S", "", "used"))["CpuDuration"] == "900"
    one["total"]["cpu_s"] = None
    assert "CpuDuration" not in fields(one, apel.Publisher("S", "", "used"))


@pytest.mark.parametrize(("cap", "count", "duration"), [(None, "2", "7200"), (50, "0.5", "1800"), (133, "1.33", "4788"),
                                                       (800, "2", "7200")])
def test_a_cap_makes_fewer_cores(cap: int, count: str, duration: str) -> None:
    one = row()
    one["footprint"]["cpu_cap_core_percent"] = cap
    read = fields(one)
    assert (read["CpuCount"], read["CpuDuration"]) == (count, duration)


def test_network_is_in_gib_of_the_guest_s_own_direction_rounded_once() -> None:
    one = row()
    one["total"] = use(3600, 2, gib_in=2.98, gib_out=0.9)  # 1.49 + 1.49: rounded apart it would be 2
    read = fields(one)
    assert (read["NetworkInbound"], read["NetworkOutbound"]) == ("3", "1")
    one["total"]["network"] = None
    assert "NetworkInbound" not in fields(one)


def test_memory_and_disk() -> None:
    one = row()
    one["footprint"].update(memory_mib=1536, disk_gib=10.2)
    assert (fields(one)["Memory"], fields(one)["Disk"]) == ("1536", "11")


def test_the_vmuuid_is_unique_in_the_world() -> None:
    rows = [row(), row(host="wn2.example.org"), row(site="site-b"), row(incarnation=2), row(number=2),
            row(vm=VM[:-1] + "9"), row(host="h" * 300), row(host="h" * 301)]
    names = [fields(one)["VMUUID"] for one in rows]
    assert len(set(names)) == len(rows) and max(map(len, names)) == 255


def test_the_last_period_of_a_month_is_booked_in_that_month() -> None:
    database = apel_reader.Database()
    hours = [("2026-10-31T23:00:00Z", "2026-11-01T00:00:00Z"), ("2026-11-01T00:00:00Z", "2026-11-01T01:00:00Z")]
    rows = [row(*hour, started_at="2026-10-31T23:00:00Z", period=number) for number, hour in enumerate(hours, 1)]
    records, _ = apel.of(rows, SITE)
    for message in apel.messages(records):
        database.take(message)
    assert database.monthly(records[0].vmuuid, "WallDuration") == {"2026-10": 3600, "2026-11": 3600}


@pytest.mark.parametrize("ended", ["2026-11-01T00:00:00Z", None, "2026-10-31T23:59:59.900Z", "2026-10-01T00:00:00Z"])
def test_an_end_at_the_edge_too(ended: str) -> None:
    one = row("2026-10-31T23:00:00Z", "2026-11-01T00:00:00Z", status="completed", final=True, ended_at=ended)
    database = apel_reader.Database()
    database.take(apel.messages(apel.of([one], SITE)[0])[0])
    assert [month for _, month in database.rows] == ["2026-10"]


def test_one_record_per_segment_and_month_is_the_newest_in_whatever_order() -> None:
    def hour(number: int) -> Dict[str, Any]:
        return row(f"2026-11-21T{number:02d}:00:00Z", f"2026-11-21T{number + 1:02d}:00:00Z", period=number,
                   started_at="2026-11-21T00:00:00Z")

    for numbers in ([1, 2, 3], [3, 1, 2], [2, 3, 1]):
        records, _ = apel.of([hour(number) for number in numbers], SITE)
        assert [one.at for one in records] == [int(walltime.seconds("2026-11-21T04:00:00Z"))]


def test_months_are_told_in_order() -> None:
    hours = [("2026-11-01T00:00:00Z", "2026-11-01T01:00:00Z"), ("2026-10-31T23:00:00Z", "2026-11-01T00:00:00Z")]
    rows = [row(*hour, started_at="2026-10-31T23:00:00Z", period=2 - number) for number, hour in enumerate(hours)]
    assert [one.month for one in apel.of(rows, SITE)[0]] == ["2026-10", "2026-11"]


def test_messages_are_bounded() -> None:
    rows = [row(vm=f"{VM[:-4]}{number:04d}", name="n" * 300) for number in range(250)]
    texts = apel.messages(apel.of(rows, SITE)[0])
    assert [len(apel_reader.load(text)) for text in texts] == [100, 100, 50]
    large = [apel.Record(str(number), "2026-11", 0, "x" * 200_000) for number in range(9)]
    assert [len(text) < 1_000_000 for text in apel.messages(large)] == [True, True, True]
    assert apel.messages([]) == []


def test_what_a_message_holds_can_be_read_back() -> None:
    records, _ = apel.of([row(), row(vm=VM[:-1] + "2")], SITE)
    (text,) = apel.messages(records)
    held = {(one.vmuuid, one.month): one.at for one in records}
    assert apel.held(text) == held and apel.held(text.replace("\n", "\r\n")) == held


def test_a_row_that_is_none_is_told_and_spoils_nothing() -> None:
    broken: List[Dict[str, Any]] = [row(to="yesterday"), row(vm="x", total=None), {"segment": "s"}, row(owner=None)]
    records, wrong = apel.of([*broken, row()], SITE)
    assert len(records) == 1 and len(wrong) == len(broken)


def test_a_disk_that_was_left_behind_is_no_vm() -> None:
    left = row(number=2)
    left["footprint"]["cores"] = 0
    assert apel.of([left], SITE) == ([], [])


@pytest.mark.parametrize(
    ("given", "sent", "read"),
    [
        ("/vo/group/Role=r/Capability=NULL", "/vo/group/Role=r/Capability=NULL", ("vo", "/vo/group", "Role=r")),
        ("/vo", "/vo/Role=NULL/Capability=NULL", ("vo", "/vo", "Role=NULL")),
        ("/vo/Role=pilot;/other", "/vo/Role=pilot/Capability=NULL", ("vo", "/vo", "Role=pilot")),
        ("urn:mace:egi.eu:group:vo.x:grp:role=vm_operator#aai.egi.eu", "/vo.x/grp/Role=vm_operator/Capability=NULL",
         ("vo.x", "/vo.x/grp", "Role=vm_operator")),
        ("a-vo", "a-vo", ("a-vo", None, None)),
        ("", "vo.example.org", ("vo.example.org", None, None)),
        ("/vo/" + "g" * 300 + "/Role=production", "/vo", ("vo", "/vo", None)),
    ],
)  # fmt: skip
def test_fqan(given: str, sent: str, read: Any) -> None:
    told = fields(row(owner={**JANE, "fqan": given}))["FQAN"]
    assert told == sent and apel_reader.vo(told) == read


@pytest.mark.parametrize(
    ("subject", "sent"),
    [
        ("CN=Jane Doe,DC=example,DC=org", "/DC=org/DC=example/CN=Jane Doe"),
        ("/DC=org/DC=example/CN=Jane Doe", "/DC=org/DC=example/CN=Jane Doe"),
        ("/DC=org/CN=Jane/CN=proxy/CN=12345", "/DC=org/CN=Jane"),
        ("/O=x/CN=robot/emailAddress=a@example.org", "/O=x/CN=robot/emailAddress=a@example.org"),
        ("0123abcd@egi.eu", "0123abcd@egi.eu"),
    ],
)
def test_user(subject: str, sent: str) -> None:
    assert owners.user({"subject": subject}) == sent


def test_the_reader_itself_is_strict() -> None:
    good = apel.messages(apel.of([row()], SITE)[0])[0]
    assert apel_reader.load(good)
    for bad in (good.replace("Memory: 4096", "Memory: 4096.0"), good.replace("Disk", "Disc"), good + "\nx\n%%\n",
                good.replace("SiteName: EXAMPLE-SITE", "SiteName: None"), good.replace("StartTime: ", "StartTime: 1."),
                good.replace("\nStatus", "\n\nStatus"), good.replace("worker-7", "w\u00fc"),
                good.replace("worker", "w%%w"), "x" + good):
        with pytest.raises(apel_reader.Rejected):
            apel_reader.load(bad)
