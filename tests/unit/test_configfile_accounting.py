"""The configuration of accounting."""

from __future__ import annotations

from pathlib import Path

from tests.unit.test_configfile import main_file, places, read


def test_accounting_periods_divide_a_day_and_prefixes_are_prefixes(tmp_path: Path) -> None:
    text = "accounting: {period_s: 60, benchmark: {name: HEPSPEC06, per_core: 12.5}, public: [192.0.2.0/24]}\n"
    rules = read(tmp_path, text).policy.accounting
    assert (rules.period_s, rules.keep_days, rules.public) == (60, 400, ("192.0.2.0/24",))
    assert rules.benchmark is not None and rules.benchmark.per_core == 12.5
    path = main_file(tmp_path, "accounting: {period_s: 7000, public: [192.0.2.1/24]}\n")
    assert places(path) == ["accounting.period_s", "accounting.public[0]"]
