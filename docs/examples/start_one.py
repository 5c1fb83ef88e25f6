"""Start one VM, wait until it is ready, stop it.  Usage: start_one.py SITE.yaml HOST IMAGE"""

import sys
import time
from pathlib import Path

from twisted.internet.defer import ensureDeferred
from twisted.internet.task import react

from vmagent.site.controller import Controller
from vmagent.site.settings import load


async def main(reactor, config, host, image):
    controller = Controller(load(Path(config)), reactor, time.time)
    await controller.connect()
    started = await controller.start(host, image=image, flavour="tiny", lifetime_s=600, name="example")
    print("VM", started.ids[0], "is asked for")  # its id is known before anybody has answered
    await started.accepted  # a Problem says why not, and then nothing was done
    await started.done  # running, network seen, storage attached
    print("it is", controller.fleet.state(started.ids[0])["phase"])
    stopped = await controller.stop(host, vms=list(started.ids))
    await stopped.done
    await controller.close()


if __name__ == "__main__":
    react(lambda reactor, *argv: ensureDeferred(main(reactor, *argv)), sys.argv[1:])
