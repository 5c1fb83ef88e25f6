"""`python3 -m vmagent.manual FOLDER` writes the manual pages and the completions."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Dict, List, Optional

from vmagent.configfile.defaults import schema
from vmagent.manual import completion, pages
from vmagent.manual.trees import COMMANDS


def made() -> Dict[str, str]:
    """Every file by its path below the folder."""
    found = {"man/man5/vmagent.yaml.5": pages.of_configuration(schema())}
    for command in COMMANDS:
        found[f"man/man{command.section}/{command.name}.{command.section}"] = pages.of_command(command)
        found[f"bash-completion/{command.name}"] = completion.of_command(command)
    return found


def main(argv: Optional[List[str]] = None) -> int:
    """0 after everything was written; argparse ends with 2 on wrong arguments."""
    parser = argparse.ArgumentParser(prog="python3 -m vmagent.manual", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to; made when it is not there")
    folder = parser.parse_args(argv).folder
    for name, text in made().items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="ascii")
    return 0


if __name__ == "__main__":
    sys.exit(main())
