"""The numbers of all rounds as Markdown."""

import os
import platform
from statistics import median


def machine(directory):
    """The machine in a line."""
    model = "unknown processor"
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    with open("/proc/meminfo", encoding="utf-8") as lines:
        memory = int(next(lines).split()[1]) / (1 << 20)
    return f"{model}, {os.cpu_count()} cores, {memory:.0f} GiB; Linux {platform.release()}; {_file_system(directory)}"


def load():
    """What else runs on the machine, in a clause: times mean little when this is not near zero."""
    return f"load average {os.getloadavg()[0]:.1f}"


def _file_system(directory):
    best = ("", "unknown file system")
    with open("/proc/self/mounts", encoding="utf-8") as table:
        for line in table:
            point, kind = line.split()[1:3]
            if f"{directory}/".startswith(point.rstrip("/") + "/") and len(point) >= len(best[0]):
                best = (point, kind)
    return best[1]


def number(value, unit):
    """A number for people."""
    if unit == "MiB":
        return f"{value:.0f} MiB"
    if unit == "×":
        return f"{value:.2f}"
    if value < 0.0995:
        return f"{value * 1000:.1f} ms" if value < 0.00995 else f"{value * 1000:.0f} ms"
    return f"{value:.2f} s"


def _markdown(head, lines):
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *lines])


class Numbers:
    """What was measured: a number for each size, peer, scenario, row and round; the reasons where there is none."""

    def __init__(self):
        self._found, self._peaks, self._reasons = {}, {}, {}

    def add(self, size, peer, scenario, round_number, rows, peak):
        """The numbers of one measurement by row, and its peak memory in MiB."""
        for row, value in rows.items():
            self._found.setdefault((size, peer, scenario, row), {})[round_number] = value
        if peak:
            self._peaks.setdefault((size, peer, scenario), {})[round_number] = peak

    def cannot(self, peer, scenario, reason):
        """Why there is no number of a scenario."""
        self._reasons.setdefault((scenario, reason), []).append(peer)

    def of(self, size, peer, scenario, row):
        """The numbers of a row by round."""
        return self._found.get((size, peer, scenario, row), {})

    def peaks(self, size, peer, scenario):
        """The peaks of a scenario by round, in MiB."""
        return self._peaks.get((size, peer, scenario), {})

    def flat(self):
        """All of it for --json, by names between slashes."""
        found = {"/".join(map(str, key)): list(values.values()) for key, values in self._found.items()}
        return found | {"/".join(map(str, (*key, "peak MiB"))): list(values.values()) for key, values in self._peaks.items()}

    def reasons(self):
        """A line for each reason why something was not measured."""
        lines = []
        for (scenario, reason), peers in self._reasons.items():
            lines.append(f"* {scenario}, {', '.join(dict.fromkeys(peers))}: {reason}")
        return "\n".join(lines)


def _others(peers, unit):
    """The names of those that the first is compared with: in memory, daemons with daemons."""
    return [peer.name for peer in peers[1:] if peer.compared and (unit != "MiB" or peer.is_daemon)]


def _best(first, others):
    """The best of the other peers: the lowest median. None where none has the row."""
    known = [(median(values.values()), name) for name, values in others.items() if values]
    return min(known)[1] if known and first else None


def _ratio(mine, theirs):
    """The median of each round's ratio: a machine that is slow for a round is slow for both."""
    both = [mine[key] / theirs[key] for key in mine if key in theirs and theirs[key]]
    return median(both) if both else None


def _goal(row):
    parts = [f"≤ {row.ratio:g}×"] if row.ratio is not None else []
    parts += [f"≤ {number(row.limit, row.unit)}"] if row.limit is not None else []
    return ", ".join(parts)


def _met(row, ratio, own):
    """Whether a goal is met; empty without goal or numbers."""
    if (row.ratio is None and row.limit is None) or own is None or (row.ratio is not None and ratio is None):
        return ""
    met = (row.ratio is None or ratio <= row.ratio) and (row.limit is None or own <= row.limit)
    return "yes" if met else "**no**"


def table(numbers, scenarios, peers, rounds, size=1):
    """Times: medians of each peer, what plain tools take, and the first peer's ratio to the best of the others."""
    first, names = peers[0].name, [peer.name for peer in peers]
    lines = []
    for scenario in scenarios:
        for key, row in scenario.rows.items():
            values = {name: numbers.of(size, name, scenario.name, key) for name in [*names, FLOOR]}
            best = _best(values[first], {name: values[name] for name in _others(peers, row.unit)})
            ratio = _ratio(values[first], values[best]) if best else None
            own = median(values[first].values()) if values[first] else None
            expected = 1 if scenario.once else rounds
            cells = [_cell(values[name], row.unit, expected) for name in [*names, FLOOR]]
            shown = f"**{ratio:.2f}** ({best})" if ratio is not None else "–"
            lines.append([row.title, *cells, shown, _goal(row), _met(row, ratio, own)])
    return _markdown(["scenario", *names, FLOOR, "ratio to the best peer", "goal", "met"], lines)


# The name of what plain tools take, in place of a peer's.
FLOOR = "plain tools"


def _cell(values, unit, rounds):
    if not values:
        return "–"
    text = number(median(values.values()), unit)
    # Rounds that failed are listed beneath the table, and are not passed over here.
    return text if len(values) == rounds else f"{text} ({len(values)} of {rounds} rounds)"


def spread(numbers, scenarios, peers, size=1):
    """Lowest and highest of each row."""
    names = [peer.name for peer in peers]
    lines = []
    for scenario in scenarios:
        for key, row in scenario.rows.items():
            cells = []
            for name in names:
                found = numbers.of(size, name, scenario.name, key).values()
                cells.append(f"{number(min(found), row.unit)} – {number(max(found), row.unit)}" if found else "–")
            lines.append([row.title, *cells])
    return _markdown(["lowest – highest", *names], lines)


def memory(numbers, scenarios, peers, size=1):
    """Peak memory of each scenario."""
    first, names = peers[0].name, [peer.name for peer in peers]
    lines = []
    for scenario in scenarios:
        values = {name: numbers.peaks(size, name, scenario.name) for name in names}
        if not any(values.values()) or scenario.once:
            continue
        best = _best(values[first], {name: values[name] for name in _others(peers, "MiB")})
        ratio = _ratio(values[first], values[best]) if best else None
        cells = [number(median(values[name].values()), "MiB") if values[name] else "–" for name in names]
        lines.append([scenario.name, *cells, f"**{ratio:.2f}** ({best})" if ratio is not None else "–"])
    return _markdown(["peak memory in", *names, "ratio to the best daemon"], lines)


def growth(numbers, scenarios, peer, sizes):
    """One peer at several sizes: time and peak memory of each row, and how they grow from the smallest to the largest."""
    lines = []
    for scenario in scenarios:
        peaks = [numbers.peaks(size, peer.name, scenario.name) for size in sizes]
        for key, row in scenario.rows.items():
            found = [numbers.of(size, peer.name, scenario.name, key) for size in sizes]
            if any(found):
                lines.append([row.title, *_grown(found, row.unit), *_grown(peaks, "MiB")])
                peaks = [{} for _ in sizes]
    head = [f"{peer.name} at"]
    for what in ("", ", peak memory"):
        head += [f"{size}×{what}" for size in sizes] + [f"growth{what}"]
    return _markdown(head, lines)


def _grown(found, unit):
    cells = [number(median(values.values()), unit) if values else "–" for values in found]
    grown = median(found[-1].values()) / median(found[0].values()) if found[0] and found[-1] else None
    return [*cells, f"**×{grown:.1f}**" if grown is not None else "–"]
