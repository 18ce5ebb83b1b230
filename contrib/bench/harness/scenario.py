"""What a scenario is, and what several of them need. Each makes fresh content once a round, and measures it at every peer in turn."""

import os
import shutil
import subprocess
import time
import uuid
from dataclasses import dataclass

from . import content

MIB = 1 << 20
BASE = f"FROM {content.BASE_IMAGE}\n"


@dataclass(frozen=True)
class Row:
    """A line of the table, and its goal: at most `ratio` times the best peer, at most `limit` (in the row's unit)."""

    title: str
    unit: str = "s"
    ratio: float | None = None
    limit: float | None = None


class Scenario:
    """One piece of work. `rows` maps the keys that `measure` returns to lines of the table."""

    name = ""
    rows: dict = {}
    # What it needs of a peer: that this program starts it; that it has an API. Whether it has a RUN.
    needs_start = False
    needs_api = False
    has_run = False
    # Whether --size means something to it, and about how many bytes it writes at each peer at size 1.
    grows = True
    bytes = 0
    # What it has to tell does not change from round to round.
    once = False

    def prepare(self, peer, work):
        """Once for each peer, before all rounds; not timed."""

    def fresh(self, directory, size):
        """Makes the content of one round in an empty directory; not timed."""

    def measure(self, peer, directory):
        """Measures at one peer; returns numbers by row key. An error leaves the rows empty, and says why."""
        raise NotImplementedError

    def floor(self, directory):
        """What plain tools of this machine take for the heart of it, by row key: nobody does it in less."""
        return {}

    def tag(self):
        """A name for the images of this scenario."""
        return f"bench-{self.name}"

    def finish(self, peer):
        """After each measurement: nothing of it is left for the next; not timed."""
        peer.client.remove(self.tag())
        peer.client.prune()

    def leave(self, peer):
        """Once for each peer, after all rounds: removes what `prepare` made."""

    def refuses(self, peer):
        """Why it cannot run at a peer; None if it can."""
        if self.needs_start and not peer.starts:
            return peer.no_start
        if self.needs_api and not hasattr(peer.client, "succeed"):
            return "no API"
        if peer.only_run and not self.has_run:
            return "no RUN in it"
        return None


class Once:
    """Something that is made when it is first needed."""

    def __init__(self, make):
        self._make, self._made = make, None

    def get(self):
        """It."""
        if self._made is None:
            self._made = self._make()
        return self._made


def write(directory, dockerfile):
    """A directory with a Dockerfile."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "Dockerfile").write_text(dockerfile)


def empty(directory):
    """An empty directory."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def settle():
    """What is written until now goes to disk before time is taken, so that nobody pays for another's writes."""
    os.sync()


def plain(directory, command, *, before="true"):
    """Seconds that a shell command takes in an empty directory beneath `directory`, which is removed after it; `before` is not timed."""
    place = directory / "plain"
    empty(place)
    try:
        subprocess.run(["sh", "-ec", before], check=True, cwd=place)
        settle()
        begin = time.monotonic()
        subprocess.run(["sh", "-ec", command], check=True, cwd=place, stdout=subprocess.DEVNULL)
        return time.monotonic() - begin
    finally:
        shutil.rmtree(place)


def run_chain(count, in_stage, first=""):
    """RUN after RUN, so many in a stage at most, as an image has no more than about 120 layers; each stage waits for the one before."""
    nonce = uuid.uuid4().hex
    lines = []
    for number in range(count):
        stage, place = divmod(number, in_stage)
        if place == 0:
            lines.append(f"FROM {content.BASE_IMAGE} AS s{stage}")
            lines.append(first if stage == 0 else f"COPY --from=s{stage - 1} /last /last")
        lines.append(f"RUN echo {nonce} {number} | tee /last > /file-{number}")
    return "\n".join(lines) + "\n"
