"""`python3 -m vmagent.configfile --example` prints etc/vmagent.yaml."""

from __future__ import annotations

import argparse
import sys

from vmagent.configfile.defaults import schema
from vmagent.configfile.rendering import example


def main() -> int:
    """0 after the example was printed; argparse ends with 2 on anything else."""
    parser = argparse.ArgumentParser(prog="python3 -m vmagent.configfile", description=__doc__)
    parser.add_argument("--example", action="store_true", required=True, help="print the commented example")
    parser.parse_args()
    sys.stdout.write(example(schema()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
