"""Resident memory and processor time of a daemon with its helpers, from /proc.

What is counted: the daemon and those of its descendants that are programs of the daemon (its own re-executed binary, containerd,
shims, OCI runtimes). What a build step runs is not the daemon's memory and is left out. The sum of resident sizes counts pages
that processes share (the program's text) once for each process.
"""

import os
import threading

# Programs that belong to a daemon; anything else beneath it is a build's own.
HELPERS = ("lapstrake", "dockerd", "containerd", "containerd-shim", "runc", "crun", "buildkitd", "docker-init", "git", "buildah")


def _status(pid):
    """The sizes in /proc/PID/status in bytes; empty when the process is gone."""
    sizes = {}
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name in ("VmRSS", "VmHWM"):
                    sizes[name] = int(value.split()[0]) * 1024
    except OSError:
        return {}
    return sizes


def _children(pid):
    """The processes that each thread of a process has started."""
    found = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as children:
                found += map(int, children.read().split())
        except OSError:
            pass  # it ended meanwhile
    return found


def _is_helper(pid):
    try:
        program = os.path.basename(os.readlink(f"/proc/{pid}/exe")).removesuffix(" (deleted)")
    except OSError:
        return False
    return program.startswith(HELPERS)


def tree(root):
    """The process `root` and those of its descendants that belong to it as helpers."""
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        if pid == root or _is_helper(pid):
            found.append(pid)
        waiting.extend(_children(pid))
    return found


def resident(root):
    """Bytes resident now, all processes of the tree together."""
    return sum(_status(pid).get("VmRSS", 0) for pid in tree(root))


def processor_seconds(root):
    """Processor time that the tree has used so far; of processes that ended, what was counted to their parents."""
    ticks = 0
    for pid in tree(root):
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:
                ticks += sum(map(int, stat.read().rpartition(")")[2].split()[11:15]))
        except OSError:
            continue
    return ticks / os.sysconf("SC_CLK_TCK")


class Peak:
    """While it is entered: the highest sum of the high-water marks of a peer's processes, in `bytes`.

    The marks are set back first, so that the peak is this scenario's. The kernel keeps them, so that nothing is missed of processes
    that live to the end; of short-lived ones it is what a look ten times a second sees.
    """

    INTERVAL = 0.1

    def __init__(self, roots):
        self.bytes = 0
        # A function, as a peer's processes come and go.
        self._roots = roots
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        for pid in self._pids():
            try:
                with open(f"/proc/{pid}/clear_refs", "w", encoding="ascii") as marks:
                    marks.write("5")
            except OSError:
                pass  # it ended, or is not ours: its mark then includes what went before
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()
        self._look()

    def _pids(self):
        return [pid for root in self._roots() for pid in tree(root)]

    def _look(self):
        self.bytes = max(self.bytes, sum(_status(pid).get("VmHWM", 0) for pid in self._pids()))

    def _watch(self):
        while not self._done.wait(self.INTERVAL):
            self._look()
