"""The `vmagent` command without a daemon: arguments, exit codes, what goes where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import vmagent
from vmagent import __main__ as command


def config(tmp_path: Path, text: str = "") -> str:
    path = tmp_path / "vmagent.yaml"
    path.write_text(
        f"site: s\nhost: h\nbroker: {{urls: [stomp://b:1]}}\nsecurity: {{ca_directory: {tmp_path}}}\n{text}"
    )
    return str(path)


def test_a_good_configuration(tmp_path: Path, capsys: Any) -> None:
    path = config(tmp_path)
    assert command.main(["--config", path, "--check-config"]) == 0
    assert capsys.readouterr() == (f"{path}: nothing wrong\n", "")


def test_a_bad_one_tells_everything_on_stderr(tmp_path: Path, capsys: Any) -> None:
    path = config(tmp_path, "instance: X\nlog_level: loud\n")
    for argv in (["--check-config"], ["--show-config"], []):
        assert command.main(["--config", path, *argv]) == command.USAGE
        out, err = capsys.readouterr()
        assert out == ""
        assert f"{path}:5: at instance" in err and f"{path}:6: at log_level" in err
        assert "2 errors" in err


def test_check_looks_at_the_host_s_files_too(tmp_path: Path, capsys: Any) -> None:
    path = config(tmp_path, "socket: {reader_group: no-such-group-here}\n")
    assert command.main(["--config", path, "--check-config"]) == command.USAGE
    assert "no-such-group-here" in capsys.readouterr().err


def test_show_is_yaml(tmp_path: Path, capsys: Any) -> None:
    assert command.main(["--config", config(tmp_path), "--show-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["site"] == "s"


@pytest.mark.parametrize(("argv", "code"), [(["--help"], 0), (["--version"], 0), (["--nonsense"], 2), (["x"], 2)])
def test_exit_codes_of_the_command_line(argv: Any, code: int, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(argv)
    assert ended.value.code == code
    if argv == ["--version"]:
        assert capsys.readouterr().out == f"vmagent {vmagent.__version__}\n"


def test_help_has_examples_and_every_exit_code(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        command.main(["--help"])
    said = capsys.readouterr().out
    assert "--check-config" in said and "examples:" in said and "exit codes:" in said


def test_both_at_once_make_no_sense(tmp_path: Path, capsys: Any) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["--config", config(tmp_path), "--check-config", "--show-config"])
    assert ended.value.code == 2
