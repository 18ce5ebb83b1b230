"""Scenarios beside the table: what single parts cost. They run when they are named."""

import os
import statistics
import subprocess
import time
import uuid
from pathlib import Path
from urllib.parse import quote

from . import content
from .client import BenchError
from .registry import Registry
from .scenario import BASE, MIB, Row, Scenario, settle, write

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "hello"


def _rest(peer):
    """Waits until the daemon has done what a build leaves behind, or for ten seconds."""
    settle()
    used = peer.processor_seconds()
    for _ in range(20):
        time.sleep(0.5)
        before, used = used, peer.processor_seconds()
        if used - before < 0.011:
            return


class Example(Scenario):
    """README's example, but for the heredoc, which dockerd 20.10 does not know."""

    name = "example"
    has_run = True
    grows = False
    rows = {
        "cold": Row("contrib/examples/hello, nothing cached"),
        "cached": Row("the same again, all cached"),
    }

    def fresh(self, directory, size):
        text = (EXAMPLE / "Dockerfile").read_text()
        begin, _, rest = text.partition("RUN <<EOT\n")
        script, _, end = rest.partition("EOT\n")
        if not end:
            raise BenchError(f"{EXAMPLE / 'Dockerfile'} has no heredoc any more: adapt this scenario")
        text = begin + "RUN " + " && ".join(script.splitlines()) + "\n" + end
        write(directory, text.replace("FROM busybox", f"FROM {content.BASE_IMAGE}"))
        (directory / "words.txt").write_text(f"{uuid.uuid4()}\n")

    def measure(self, peer, directory):
        settle()
        cold = peer.client.build(directory, self.tag(), options=["--no-cache"])
        cached = peer.client.build(directory, self.tag())
        return {"cold": cold, "cached": cached}


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
    needs_api = True
    rows = {
        "first": Row("2,000 vertices in 40 stages, the first time, docker CLI"),
        "rebuild": Row("the same again, all cached"),
        "server": Row("processor time of the daemon in that rebuild, and after it", ratio=0.1),
    }

    def fresh(self, directory, size):
        write(directory, _wide(content.BASE_IMAGE, 39, 49 * size, ""))

    def measure(self, peer, directory):
        first = peer.client.build(directory, self.tag())
        rebuilds = []
        for _ in range(6):
            _rest(peer)
            used = peer.processor_seconds()
            rebuild = peer.client.build(directory, self.tag())
            _rest(peer)
            rebuilds.append((rebuild, peer.processor_seconds() - used))
        # What the first one leaves to be done, such as collecting what the build no longer needs, is no part of a rebuild.
        rebuild, server = (statistics.median(column) for column in zip(*rebuilds[1:]))
        return {"first": first, "rebuild": rebuild, "server": server}


class CacheFrom(Scenario):
    """A rebuild in which every step is cached, without and with a cache of a thousand records that is asked, too."""

    name = "cache-from-1000"
    needs_api = True
    rows = {
        "without": Row("1,000 records here, all cached, docker CLI"),
        "with": Row("the same with `--cache-from` the same 1,000 records in a registry"),
        "adds": Row("what `--cache-from` adds", limit=0.1),
        "empty": Row("the same in an empty store, all from that cache"),
    }

    def __init__(self, lapstrake):
        self.lapstrake = lapstrake

    def fresh(self, directory, size):
        self.context, self.storage = directory / "context", directory / "registry"
        write(self.context, _wide("scratch", 20, 49 * size, f"/{uuid.uuid4().hex}"))
        with Registry(self.storage) as registry:
            command = [self.lapstrake, "build", "--progress", "quiet", "--root", str(directory / "root"), "--cache-to"]
            command += [f"type=registry,ref={registry.host}/bench:cache,mode=max", str(self.context)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def measure(self, peer, directory):
        client = peer.client
        client.build(self.context, self.tag())
        with Registry(self.storage) as registry:
            options = ["--cache-from", f"{registry.host}/bench:cache"]
            client.build(self.context, self.tag(), options=options)
            pairs = []
            for _ in range(5):
                settle()
                without = client.build(self.context, self.tag())
                pairs.append((without, client.build(self.context, self.tag(), options=options)))
            client.remove(self.tag())
            client.prune()
            settle()
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
    needs_api = True
    rows = {
        "first-1000": Row("`system df`, 1,000 records, the first time after the build"),
        "again-1000": Row("the same again", limit=0.1),
        "first-10000": Row("`system df`, 10,000 records, the first time after the builds"),
        "again-10000": Row("the same again"),
        "prune-none-10000": Row("`builder prune --filter until=24h` of them: nothing to remove"),
    }

    def fresh(self, directory, size):
        self.contexts = [directory / str(number) for number in range(10)]
        for context in self.contexts:
            write(context, _wide("scratch", 20, 49 * size, f"/{uuid.uuid4().hex}"))

    def measure(self, peer, directory):
        found = {}
        for built, context in enumerate(self.contexts, 1):
            peer.client.build(context, f"{self.tag()}-{built}")
            if built not in (1, 10):
                continue
            key = f"{built}000"
            found[f"first-{key}"] = self._ask(peer)
            found[f"again-{key}"] = statistics.median(self._ask(peer) for _ in range(5))
        filters = quote('{"until":["24h"]}')
        begin = time.monotonic()
        peer.client.succeed("POST", f"/build/prune?filters={filters}")
        found["prune-none-10000"] = time.monotonic() - begin
        return found

    def _ask(self, peer):
        begin = time.monotonic()
        peer.client.succeed("GET", "/v1.41/system/df")
        return time.monotonic() - begin

    def finish(self, peer):
        for built in range(1, 11):
            peer.client.remove(f"{self.tag()}-{built}")
        peer.client.prune()


class RunTrue(Scenario):
    """What a RUN costs beyond its program: chains of 50 of a static `true`, less the chain of none."""

    name = "run-true"
    has_run = True
    rows = {
        "each": Row("RUN of a static `true`, each of a chain of 50, host's network", ratio=0.2, limit=0.008),
        "sandbox": Row("the same in the default network (dockerd has none here; 2 ms more at most)"),
    }

    def fresh(self, directory, size):
        self.count = 50 * size
        self.nonce = uuid.uuid4().hex

    def measure(self, peer, directory):
        numbers = {"each": self.each(peer, directory, "host")}
        if getattr(peer, "has_networks", False):
            numbers["sandbox"] = self.each(peer, directory, "default")
        return numbers

    def each(self, peer, directory, network):
        """Seconds for each RUN."""
        base = f"{BASE}ENV NONCE={self.nonce}{network}\n"
        options = (f"--network={network}",)
        write(directory, base)
        peer.client.build(directory, self.tag(), options=options)
        settle()
        none = peer.client.build(directory, self.tag(), options=options)
        write(directory, base + "".join(f'RUN ["/bin/true", "{number}"]\n' for number in range(self.count)))
        settle()
        return (peer.client.build(directory, self.tag(), options=options) - none) / self.count


class RunSixteen(Scenario):
    """Sixteen stages at once, each a RUN that computes: whether they use all processors, and nothing but them."""

    name = "run-16"
    has_run = True
    rows = {
        "wall": Row("16 stages at once, each a RUN that computes"),
        "share": Row("the share of all processors that they had (one alone, 16 times, over all cores, over the row above; at least 0.8)", "×"),
    }

    def fresh(self, directory, size):
        self.rounds = 300_000 * size
        self.nonce = uuid.uuid4().hex

    def stages(self, peer, directory, count):
        """Seconds of a build of so many."""
        loop = f"i=0; while [ $i -lt {self.rounds} ]; do i=$((i+1)); done"
        stages = "".join(f"FROM {content.BASE_IMAGE} AS s{n}\nRUN {loop}; echo {self.nonce}-{count}-{n} > /out\n" for n in range(count))
        copies = "".join(f"COPY --from=s{n} /out /{n}\n" for n in range(count))
        write(directory, stages + BASE + copies)
        settle()
        return peer.client.build(directory, self.tag())

    def measure(self, peer, directory):
        one = self.stages(peer, directory, 1)
        wall = self.stages(peer, directory, 16)
        return {"wall": wall, "share": 16 * one / len(os.sched_getaffinity(0)) / wall}


class LargeContext(Scenario):
    """A context of 2 GiB, sent in each of the three ways."""

    needs_api = True
    bytes = 2048 * MIB

    def __init__(self, way, title):
        self.way = way
        self.name = f"context-2g-{way}"
        self.rows = {"build": Row(f"{title} (peak memory below 150 MiB)")}

    def fresh(self, directory, size):
        write(directory, BASE + "COPY . /data\n")
        self.size = 0
        for number in range(8):
            content.write_random(directory / f"part-{number}", 256 * MIB * size)
            self.size += 256 * MIB * size

    def measure(self, peer, directory):
        settle()
        if self.way == "post":
            tar = ["tar", "-C", str(directory), "-cf", "-", "."]
            seconds = peer.client.post_build(tar, {"t": self.tag(), "networkmode": "host"})
        else:
            build = peer.client.build if self.way == "buildkit" else peer.client.build_classic
            seconds = build(directory, self.tag())
        peer.client.at_least(self.tag(), self.size)
        return {"build": seconds}


def further(lapstrake):
    """In the order in which they run and are shown. The program of Lapstrake, which makes what others read."""
    return [
        Example(), CachedWide(), CacheFrom(lapstrake), DiskUsage(), RunTrue(), RunSixteen(),
        LargeContext("buildkit", "2 GiB context, docker CLI with BuildKit"),
        LargeContext("classic", "2 GiB context, docker CLI without BuildKit"),
        LargeContext("post", "2 GiB context, `POST /build` with curl"),
    ]
