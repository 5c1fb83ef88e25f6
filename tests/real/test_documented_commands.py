"""Commands of ours in the documents that need guests, run as they stand there, against one agent.

One test, because it is one site: what ends a VM comes when it comes, and another is started for the next one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterator

import pytest

from tests.real.conftest import SUBNET
from tests.support import documentedsite
from tests.support.agent import Agent
from tests.support.documented import Line
from tests.support.documentedsite import NEEDS_A_VM, OF_IMAGES, VM, Place, faults, prepared, wanted, with_guests
from tests.support.imageserver import ImageServer


@pytest.fixture
def config(config: Dict[str, Any], golden: Any, source: ImageServer, tmp_path: Path) -> Dict[str, Any]:
    """The image comes from a server, so that it can be fetched and evicted."""
    directory, image = golden
    source.files["/el9-worker.qcow2"] = (directory / image["file"]).read_bytes()
    here = config["images"]["catalogue"]["try"]
    fetched = {"url": source.url("/el9-worker.qcow2"), "format": image["format"], "sha512": image["sha512"]}
    volume = tmp_path / "reference.raw"
    volume.write_bytes(b"0\n".ljust(2 * 2**20, b"\0"))
    volume.chmod(0o666)
    made = documentedsite.config(config, SUBNET, {"try": here, VM: here, "el9-worker": fetched})
    made["volumes"] = {"reference-data": {"path": str(volume)}}
    made["images"]["fetch"] = {"ca": str(source.certificates.ca)}
    made["lease"]["grace_s"] = 1
    return made


@pytest.fixture
def place(agent: Agent, tmp_path: Path, rabbitmq: Any, trust: Path) -> Iterator[Place]:
    agent.start()
    made = prepared(tmp_path, agent, rabbitmq.port, trust)
    yield made
    made.commands.close()


@pytest.mark.timeout(900)  # some fifty commands, and a guest that boots anew for each that ends one
def test_every_command_that_needs_a_guest_does_what_it_says(place: Place) -> None:
    def ready(line: Line) -> str:
        """With the ids of the VM that runs here, and that VM; before the images' own page, none."""
        text = line.text
        if any(word in text for word in NEEDS_A_VM) and ".ova" not in text:
            vm = place.vm()
            place.taken()
            return text.replace("5fb4f6cc-92c8-5d5c-8611-3bce2a285a48", vm).replace("3fa1", vm[:8])
        if line.page == OF_IMAGES:
            place.nobody()
        else:
            place.run("vmagentctl undrain")
        return text

    found = faults(place, [line for line in wanted() if with_guests(line)], ready)
    assert not found, "\n".join(found)
