"""What is measured. Each scenario makes fresh content once a round, and measures it at every daemon in turn.

To add one: a subclass of Scenario with its rows, `fresh` and `measure`, and its name in ALL at the end.
"""

import os
import shutil
import statistics
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from . import content
from .client import BenchError
from .registry import Registry

MIB = 1 << 20
BASE = f"FROM {content.BASE_IMAGE}\n"
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "hello"


@dataclass(frozen=True)
class Row:
    """A line of the table. `goal` is text: what issue or README promise."""

    title: str
    unit: str = "s"
    goal: str = ""


class Scenario:
    """One piece of work. `rows` maps the keys that `measure` returns to lines of the table."""

    name = ""
    rows: dict = {}
    # Whether it starts and stops daemons itself, so that daemons of others cannot take part.
    needs_start = False

    def prepare(self, daemon, work):
        """Once for each daemon, before all rounds; not timed."""

    def fresh(self, directory, scale):
        """Makes the content of one round in an empty directory; not timed."""

    def measure(self, daemon, directory):
        """Measures at one daemon; returns numbers by row key. An error leaves the row empty, and says why."""
        raise NotImplementedError

    def tag(self):
        """A name for the images of this scenario."""
        return f"bench-{self.name}"

    def finish(self, daemon):
        """After each measurement: nothing of it is left for the next; not timed."""
        daemon.client.remove(self.tag())
        daemon.client.prune()


def _write(directory, dockerfile):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "Dockerfile").write_text(dockerfile)


def _settle():
    """What is written until now goes to disk before time is taken, so that nobody pays for another's writes."""
    os.sync()


def _rest(daemon):
    """Waits until the daemon has done what a build leaves behind, or for ten seconds."""
    _settle()
    used = daemon.processor_seconds()
    for _ in range(20):
        time.sleep(0.5)
        before, used = used, daemon.processor_seconds()
        if used - before < 0.011:
            return


def _at_least(daemon, tag, size):
    """An image that lacks its content is not fast, but wrong."""
    found = daemon.client.image_size(tag)
    if found < size:
        raise BenchError(f"{tag} has {found} bytes; its content alone has {size}")


class Start(Scenario):
    """A daemon of its own over a store of a thousand images."""

    name = "start"
    needs_start = True
    rows = {
        "ping": Row("start to first `/_ping`, store with {images} images", goal="≤ 0.1 s; ≤ 0.1×"),
        "idle": Row("idle memory over that store", "MiB", "≤ 0.25×"),
    }

    def __init__(self, images):
        self.images = images

    def prepare(self, daemon, work):
        archive = work / "images.tar"
        if not archive.exists():
            content.write_archive_of_images(archive, self.images)
        other = daemon.sibling("start")
        try:
            other.start()
            other.client.load(archive)
            other.client.image_size(f"bench-store:{self.images - 1}")
        finally:
            other.stop()
        daemon.over_images = other

    def measure(self, daemon, directory):
        other = daemon.over_images
        _settle()
        try:
            seconds = other.start()
            time.sleep(2)
            return {"ping": seconds, "idle": other.resident() / MIB}
        finally:
            other.stop()

    def finish(self, daemon):
        pass


class Idle(Scenario):
    """A daemon just started, over a store with only the base image."""

    name = "idle"
    needs_start = True
    rows = {"idle": Row("idle memory, store with one image", "MiB", "< 25 MiB; ≤ 0.25×")}

    def measure(self, daemon, directory):
        daemon.stop()
        daemon.start()
        time.sleep(2)
        return {"idle": daemon.resident() / MIB}


class LargeContext(Scenario):
    """A context of 2 GiB, sent in each of the three ways."""

    def __init__(self, way, title):
        self.way = way
        self.name = f"context-2g-{way}"
        self.rows = {"build": Row(title, goal="peak < 150 MiB")}

    def fresh(self, directory, scale):
        _write(directory, BASE + "COPY . /data\n")
        self.size = 0
        for number in range(8):
            size = int(256 * MIB * scale)
            content.write_random(directory / f"part-{number}", size)
            self.size += size

    def measure(self, daemon, directory):
        _settle()
        if self.way == "post":
            tar = ["tar", "-C", str(directory), "-cf", "-", "."]
            seconds = daemon.client.post_build(tar, {"t": self.tag(), "networkmode": "host"})
        else:
            seconds = daemon.client.build(directory, self.tag(), buildkit=self.way == "buildkit")
        _at_least(daemon, self.tag(), self.size)
        return {"build": seconds}


class Example(Scenario):
    """README's example, but for the heredoc, which dockerd 20.10 does not know."""

    name = "example"
    rows = {
        "cold": Row("contrib/examples/hello, nothing cached"),
        "cached": Row("the same again, all cached"),
    }

    def fresh(self, directory, scale):
        text = (EXAMPLE / "Dockerfile").read_text()
        begin, _, rest = text.partition("RUN <<EOT\n")
        script, _, end = rest.partition("EOT\n")
        if not end:
            raise BenchError(f"{EXAMPLE / 'Dockerfile'} has no heredoc any more: adapt this scenario")
        text = begin + "RUN " + " && ".join(script.splitlines()) + "\n" + end
        _write(directory, text.replace("FROM busybox", f"FROM {content.BASE_IMAGE}"))
        (directory / "words.txt").write_text(f"{uuid.uuid4()}\n")

    def measure(self, daemon, directory):
        _settle()
        cold = daemon.client.build(directory, self.tag(), options=["--no-cache"])
        cached = daemon.client.build(directory, self.tag())
        return {"cold": cold, "cached": cached}


class RunChain(Scenario):
    """Twenty RUN, each on the one before."""

    name = "run-20"
    rows = {"build": Row("chain of 20 RUN", goal="≤ 0.25×")}

    def fresh(self, directory, scale):
        _write(directory, BASE + _runs(int(20 * scale) or 1))

    def measure(self, daemon, directory):
        _settle()
        return {"build": daemon.client.build(directory, self.tag())}


class RunTrue(Scenario):
    """What a RUN costs beyond its program: chains of 50 of a static `true`, less the chain of none."""

    name = "run-true"
    rows = {
        "each": Row("RUN of a static `true`, each of a chain of 50, host's network", goal="≤ 8 ms; ≤ 0.2×"),
        "sandbox": Row("the same in the default network (dockerd has none here)", goal="≤ 2 ms more"),
    }

    def fresh(self, directory, scale):
        self.count = int(50 * scale) or 1
        self.nonce = uuid.uuid4().hex

    def measure(self, daemon, directory):
        numbers = {"each": self.each(daemon, directory, "host")}
        if daemon.has_networks:
            numbers["sandbox"] = self.each(daemon, directory, "default")
        return numbers

    def each(self, daemon, directory, network):
        """Seconds for each RUN."""
        base = f"{BASE}ENV NONCE={self.nonce}{network}\n"
        options = (f"--network={network}",)
        _write(directory, base)
        daemon.client.build(directory, self.tag(), options=options)
        _settle()
        none = daemon.client.build(directory, self.tag(), options=options)
        _write(directory, base + "".join(f'RUN ["/bin/true", "{number}"]\n' for number in range(self.count)))
        _settle()
        return (daemon.client.build(directory, self.tag(), options=options) - none) / self.count


class RunSixteen(Scenario):
    """Sixteen stages at once, each a RUN that computes: whether they use all processors, and nothing but them."""

    name = "run-16"
    rows = {
        "wall": Row("16 stages at once, each a RUN that computes"),
        "share": Row("the share of all processors that they had (one alone, 16 times, over all cores, over the row above)", "×", goal="≥ 0.8"),
    }

    def fresh(self, directory, scale):
        self.rounds = int(300_000 * scale)
        self.nonce = uuid.uuid4().hex

    def stages(self, daemon, directory, count):
        """Seconds of a build of so many."""
        loop = f"i=0; while [ $i -lt {self.rounds} ]; do i=$((i+1)); done"
        stages = "".join(f"FROM {content.BASE_IMAGE} AS s{n}\nRUN {loop}; echo {self.nonce}-{count}-{n} > /out\n" for n in range(count))
        copies = "".join(f"COPY --from=s{n} /out /{n}\n" for n in range(count))
        _write(directory, stages + BASE + copies)
        _settle()
        return daemon.client.build(directory, self.tag())

    def measure(self, daemon, directory):
        one = self.stages(daemon, directory, 1)
        wall = self.stages(daemon, directory, 16)
        return {"wall": wall, "share": 16 * one / len(os.sched_getaffinity(0)) / wall}


def _runs(count):
    nonce = uuid.uuid4().hex
    return "".join(f"RUN echo {nonce} > /file-{number}\n" for number in range(count))


class Cached(Scenario):
    """A rebuild in which every step is cached; and what of it is the daemon's."""

    name = "cached-51"
    rows = {
        "rebuild": Row("cached rebuild, 51 steps, docker CLI", goal="≤ 0.5×"),
        "classic": Row("the same, `POST /build` with curl, no CLI"),
        "daemon": Row("the same, from the request to the answer's end", goal="≤ 15 ms; ≤ 0.1×"),
        "cli": Row("for scale: `docker version` against the daemon"),
    }

    def fresh(self, directory, scale):
        _write(directory, BASE + "COPY Dockerfile /\n" + _runs(int(49 * scale) or 1))

    def measure(self, daemon, directory):
        client = daemon.client
        client.build(directory, self.tag())
        _settle()
        rebuild = client.build(directory, self.tag())
        tar = ["tar", "-C", str(directory), "-cf", "-", "."]
        query = {"t": self.tag(), "networkmode": "host"}
        client.post_build(tar, query)  # classic builds have a cache of their own at dockerd
        classic = client.post_build(tar, query)
        archive = subprocess.run(tar, check=True, stdout=subprocess.PIPE).stdout
        answers = statistics.median(client.post_archive(archive, query) for _ in range(10))
        return {"rebuild": rebuild, "classic": classic, "daemon": answers, "cli": client.run_version()}


def _wide(base, stages, steps, root):
    """A Dockerfile of stages × steps vertices that run nothing, beneath `root`."""
    lines = []
    for stage in range(stages):
        lines.append(f"FROM {base} AS s{stage}")
        lines += [f"WORKDIR {root}/s{stage}/{step}" for step in range(steps)]
    lines.append(f"FROM {base}")
    lines += [f"COPY --from=s{stage} {root}/s{stage} {root}/s{stage}" for stage in range(stages)]
    return "\n".join(lines) + "\n"


class CachedWide(Scenario):
    """A rebuild of a large graph in which everything is cached."""

    name = "cached-2000"
    rows = {
        "first": Row("2,000 vertices in 40 stages, the first time, docker CLI"),
        "rebuild": Row("the same again, all cached"),
        "server": Row("processor time of the daemon in that rebuild, and after it", goal="≤ 0.1×"),
    }

    def fresh(self, directory, scale):
        _write(directory, _wide(content.BASE_IMAGE, 39, max(1, int(49 * scale)), ""))

    def measure(self, daemon, directory):
        first = daemon.client.build(directory, self.tag())
        rebuilds = []
        for _ in range(6):
            _rest(daemon)
            used = daemon.processor_seconds()
            rebuild = daemon.client.build(directory, self.tag())
            _rest(daemon)
            rebuilds.append((rebuild, daemon.processor_seconds() - used))
        # What the first one leaves to be done, such as collecting what the build no longer needs, is no part of a rebuild.
        rebuild, server = (statistics.median(column) for column in zip(*rebuilds[1:]))
        return {"first": first, "rebuild": rebuild, "server": server}


class CacheFrom(Scenario):
    """A rebuild in which every step is cached, without and with a cache of a thousand records that is asked, too."""

    name = "cache-from-1000"
    rows = {
        "without": Row("1,000 records here, all cached, docker CLI"),
        "with": Row("the same with `--cache-from` the same 1,000 records in a registry"),
        "adds": Row("what `--cache-from` adds", goal="≤ 0.1 s"),
        "empty": Row("the same in an empty store, all from that cache"),
    }

    def __init__(self, lapstrake):
        self.lapstrake = lapstrake

    def fresh(self, directory, scale):
        self.context, self.storage = directory / "context", directory / "registry"
        _write(self.context, _wide("scratch", 20, max(1, int(49 * scale)), f"/{uuid.uuid4().hex}"))
        with Registry(self.storage) as registry:
            command = [self.lapstrake, "build", "--progress", "quiet", "--root", str(directory / "root"), "--cache-to"]
            command += [f"type=registry,ref={registry.host}/bench:cache,mode=max", str(self.context)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def measure(self, daemon, directory):
        client = daemon.client
        client.build(self.context, self.tag())
        with Registry(self.storage) as registry:
            options = ["--cache-from", f"{registry.host}/bench:cache"]
            client.build(self.context, self.tag(), options=options)
            pairs = []
            for _ in range(5):
                _settle()
                without = client.build(self.context, self.tag())
                pairs.append((without, client.build(self.context, self.tag(), options=options)))
            client.remove(self.tag())
            client.prune()
            _settle()
            empty_store = client.build(self.context, self.tag(), options=options)
        return {
            "without": statistics.median(without for without, _ in pairs),
            "with": statistics.median(with_it for _, with_it in pairs),
            "adds": statistics.median(with_it - without for without, with_it in pairs),
            "empty": empty_store,
        }


class DiskUsage(Scenario):
    """`system df` over a build cache of many records."""

    name = "df"
    rows = {
        "first-1000": Row("`system df`, 1,000 records, the first time after the build"),
        "again-1000": Row("the same again", goal="≤ 0.1 s"),
        "first-10000": Row("`system df`, 10,000 records, the first time after the builds"),
        "again-10000": Row("the same again"),
        "prune-none-10000": Row("`builder prune --filter until=24h` of them: nothing to remove"),
    }

    def fresh(self, directory, scale):
        self.contexts = [directory / str(number) for number in range(10)]
        for context in self.contexts:
            _write(context, _wide("scratch", 20, max(1, int(49 * scale)), f"/{uuid.uuid4().hex}"))

    def measure(self, daemon, directory):
        found = {}
        for built, context in enumerate(self.contexts, 1):
            daemon.client.build(context, f"{self.tag()}-{built}")
            if built not in (1, 10):
                continue
            key = f"{built}000"
            found[f"first-{key}"] = self._ask(daemon)
            found[f"again-{key}"] = statistics.median(self._ask(daemon) for _ in range(5))
        filters = quote('{"until":["24h"]}')
        begin = time.monotonic()
        daemon.client.succeed("POST", f"/build/prune?filters={filters}")
        found["prune-none-10000"] = time.monotonic() - begin
        return found

    def _ask(self, daemon):
        begin = time.monotonic()
        daemon.client.succeed("GET", "/v1.41/system/df")
        return time.monotonic() - begin

    def finish(self, daemon):
        for built in range(1, 11):
            daemon.client.remove(f"{self.tag()}-{built}")
        daemon.client.prune()


class SmallFiles(Scenario):
    """A context of many small files; then one of them changes."""

    name = "context-20k"
    rows = {
        "first": Row("context of 20,000 small files (42 MB), first send", goal="≤ 0.35×"),
        "changed": Row("one of them changed", goal="≤ 0.2×"),
    }

    def fresh(self, directory, scale):
        _write(directory, BASE + "COPY src /src\n")
        self.one = content.write_small_files(directory / "src", max(200, int(20_000 * scale)), 2100)

    def measure(self, daemon, directory):
        _settle()
        first = daemon.client.build(directory, self.tag())
        self.one.write_text(f"{uuid.uuid4()}\n")
        _settle()
        return {"first": first, "changed": daemon.client.build(directory, self.tag())}


class LargeFile(Scenario):
    """One large file into the image store."""

    name = "copy-512m"
    rows = {"build": Row("COPY of one 512 MiB file", goal="≤ 0.2×")}

    def fresh(self, directory, scale):
        _write(directory, BASE + "COPY large /\n")
        self.size = int(512 * MIB * scale)
        content.write_random(directory / "large", self.size)

    def measure(self, daemon, directory):
        _settle()
        seconds = daemon.client.build(directory, self.tag())
        _at_least(daemon, self.tag(), self.size)
        return {"build": seconds}


class AtOnce(Scenario):
    """Eight builds at once, of eight RUN each."""

    name = "parallel-8"
    rows = {"build": Row("8 builds at once of 8 RUN", goal="≤ 0.3×")}

    def fresh(self, directory, scale):
        self.directories = [directory / str(number) for number in range(8)]
        for each in self.directories:
            _write(each, BASE + _runs(8))

    def measure(self, daemon, directory):
        _settle()
        return {"build": daemon.client.build_many(self.directories, self.tag())}

    def finish(self, daemon):
        for number in range(8):
            daemon.client.remove(f"{self.tag()}-{number}")
        daemon.client.prune()


class FanIn(Scenario):
    """Stages that do not depend on each other, and one that needs them all."""

    name = "fan-in-32"
    rows = {"build": Row("fan-in of 32 stages, each a RUN", goal="≤ 0.3×")}

    def fresh(self, directory, scale):
        nonce, count = uuid.uuid4().hex, max(2, int(32 * scale))
        stages = "".join(f"{BASE.strip()} AS s{number}\nRUN echo {nonce} {number} > /out\n" for number in range(count))
        _write(directory, stages + BASE + "".join(f"COPY --from=s{number} /out /out-{number}\n" for number in range(count)))

    def measure(self, daemon, directory):
        _settle()
        return {"build": daemon.client.build(directory, self.tag())}


class RunWrites(Scenario):
    """A RUN that writes many files."""

    name = "run-250m"
    rows = {"build": Row("RUN writing 250 MB in 10,000 files", goal="≤ 0.4×")}

    def fresh(self, directory, scale):
        self.count = max(100, int(10_000 * scale))
        seed = uuid.uuid4().hex
        script = (
            f"mkdir /out && cd /out && echo {seed} > seed && head -c 25000 /dev/urandom > all && "
            f"for i in $(seq {self.count}); do {{ echo $i; cat all; }} > f$i; done"
        )
        _write(directory, BASE + f"RUN {script}\n")

    def measure(self, daemon, directory):
        _settle()
        seconds = daemon.client.build(directory, self.tag())
        _at_least(daemon, self.tag(), self.count * 25_000)
        return {"build": seconds}


class CopyFrom(Scenario):
    """A COPY --from of many files."""

    name = "copy-from-50k"
    rows = {"build": Row("`COPY --from` of 50,000 files (their RUN cached)", goal="≤ 0.15×")}

    def fresh(self, directory, scale):
        script = f"mkdir /o; for d in $(seq {max(1, int(500 * scale))}); do mkdir /o/$d; for f in $(seq 100); do echo {uuid.uuid4()} $d $f > /o/$d/$f; done; done"
        self.first = f"{BASE.strip()} AS files\nRUN {script}\n"
        _write(directory, "")

    def measure(self, daemon, directory):
        _write(directory, self.first)
        daemon.client.build(directory, self.tag())
        _write(directory, self.first + BASE + "COPY --from=files /o /o\n")
        _settle()
        return {"build": daemon.client.build(directory, self.tag())}


def all_scenarios(images, lapstrake):
    """In the order in which they run and are shown."""
    return [
        Start(images),
        Idle(),
        Example(),
        Cached(),
        CachedWide(),
        CacheFrom(lapstrake),
        DiskUsage(),
        RunChain(),
        RunTrue(),
        RunSixteen(),
        FanIn(),
        AtOnce(),
        SmallFiles(),
        LargeFile(),
        RunWrites(),
        CopyFrom(),
        LargeContext("buildkit", "2 GiB context, docker CLI with BuildKit"),
        LargeContext("classic", "2 GiB context, docker CLI without BuildKit"),
        LargeContext("post", "2 GiB context, `POST /build` with curl"),
    ]


def empty(directory):
    """An empty directory."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
