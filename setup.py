"""Metadata stands here because setuptools 53 (EL9) knows no [project] table; tools are set up in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "vmagent/__init__.py").read_text(encoding="utf-8"), re.M)
README = HERE / "README.md"

# Lower bounds are what EL9 ships and what `run-tests` runs with (the oldest set).
REQUIRES = [
    "libvirt-python>=9.0.0",
    "Twisted>=22.10.0",
    "stomp.py>=7.0.0",
    "psutil>=5.8.0",
    "PyYAML>=5.4.1",
    "jsonschema>=3.2.0",
    "cryptography>=36.0.1",
    "pyOpenSSL>=21.0.0",
    "jwcrypto>=0.8",
    "rich>=12.6.0",
]

setup(
    name="vmagent",
    version=VERSION.group(1),
    description="Per-host agent that starts, holds and ends virtual machines for a site",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9",
    packages=find_packages(include=["vmagent", "vmagent.*"]),
    package_data={"vmagent.schema": ["*.json"]},
    zip_safe=False,
    install_requires=REQUIRES,
    extras_require={"systemd": ["systemd-python>=234"], "test": ["pytest>=6.2.5"]},
    entry_points={
        "console_scripts": [
            "vmagent=vmagent.__main__:main",
            "vmagentctl=vmagent.local.ctl:main",
            "vmagent-site=vmagent.site.__main__:main",
            "check_vmagent=vmagent.export.check_vmagent:main",
            "check_vm_creation=vmagent.site.check_vm_creation:main",
        ]
    },
    classifiers=[
        "Environment :: No Input/Output (Daemon)",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.9",
        "Topic :: System :: Clustering",
        "Typing :: Typed",
    ],
)
