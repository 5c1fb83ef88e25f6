"""Manual pages and bash completions, made from what the programs themselves read: their parsers and the schema.

There is no second text.  `python3 -m vmagent.manual FOLDER` writes FOLDER/man/manN/NAME.N and
FOLDER/bash-completion/NAME; the package does it while it is built, and whoever installs with pip may do it by hand.
"""
