"""The tables of docs/performance.md, between their markers, and its plots, from docs/performance.json.

Invariant: no figure on that page is written by hand. Whatever stands outside of the markers is left as it is.
"""
import html
import math
import re

ORDER = ["reprieve", "s5cmd", "rclone", "boto3", "minio-py", "bare", "one statement"]
NAMES = {"reprieve": "**Reprieve**", "bare": "bare client", "one statement": "one `delete`"}
COLOURS = {"reprieve": "#c2410c", "bare": "#9ca3af"}
OTHERS = "#3b6ea5"
DASHES = ["", "6 3", "2 3"]


def done(line):
    """Objects that are gone: who leaves some has not been fast."""
    return line["count"] - line.get("left", 0)


def rate(line):
    return done(line) / line["seconds"]


def cpu(line):
    return line["cpu"] * 1e6 / max(done(line), 1)


def mib(line):
    return line["rss"] / 2**20


def number(value):
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def outcome(line):
    """What went wrong, in a word."""
    said = []
    if line.get("left"):
        said.append(f"{number(line['left'])} left")
    if line.get("errors"):
        said.append(f"failed in {line['errors']} of {line['runs']}")
    return ", ".join(said) or "nothing left"


COLUMNS = {
    "objects/s": lambda line: number(rate(line)),
    "rows/s": lambda line: number(rate(line)),
    "datasets/s": lambda line: number(rate(line)),
    "seconds": lambda line: f"{line['seconds']:.2f} ({line['fastest']:.2f} to {line['slowest']:.2f})",
    "CPU ms / 1000": lambda line: number(cpu(line)) if line["cpu"] and done(line) else "",
    "peak MiB": lambda line: number(mib(line)) if line["rss"] else "",
    "requests": lambda line: number(line["requests"]) if "requests" in line else "",
    "refused": lambda line: f"{100 * line['throttled'] / line['requests']:.1f} %",
    "of the limit": lambda line: f"{100 * line['share_of_limit'] * done(line) / line['count']:.0f} %",
    "outcome": outcome,
    "due to purged, s: median, 99 %, longest":
        lambda line: f"{line['latency']:.2f}, {line['latency_p99']:.2f}, {line['latency_max']:.2f}",
}
PLAIN = ["objects/s", "seconds", "CPU ms / 1000", "peak MiB", "requests", "outcome"]
TABLES = {
    "a": ["objects/s", "seconds", "CPU ms / 1000", "peak MiB", "outcome"], "b": PLAIN, "c": PLAIN, "d": PLAIN, "f": PLAIN,
    "e": ["objects/s", "of the limit", "refused", "CPU ms / 1000", "peak MiB", "outcome"],
    "g": ["datasets/s", "seconds", "CPU ms / 1000", "peak MiB", "due to purged, s: median, 99 %, longest", "outcome"],
    "h": ["rows/s", "seconds", "CPU ms / 1000", "peak MiB", "outcome"],
}


def table(lines, columns):
    several = len({line["count"] for line in lines}) > 1
    head = (["count"] if several else []) + ["", *columns]
    rows = [head, ["---:" if name else "---" for name in head]]
    for line in sorted(lines, key=lambda line: (line["count"], ORDER.index(line["who"]))):
        cells = [f"{line['count']:,}"] if several else []
        rows.append(cells + [NAMES.get(line["who"], line["who"])] + [COLUMNS[name](line) for name in columns])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def runs(known):
    """Of how many runs the figures are the medians."""
    numbers = sorted({line["runs"] for line in known["lines"]})
    return "One run of each" if numbers == [1] else f"{' to '.join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))} runs of each"


def machine(known):
    it = known["machine"]
    stamps = sorted({(line["date"], line["commit"]) for line in known["lines"]})
    return (f"{it['processor']}, {it['cores']} cores shared by client, server and database, {it['memory_gib']} GiB,"
            f" {it['system']}, {it['rustc']}. Peers: {it['peers']}. {runs(known)}. "
            f"Measured at {', '.join(f'{commit} ({date})' for date, commit in stamps)}.")


def svg(width, height, parts):
    body = "\n".join(parts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
            f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n')


def text(x, y, said, anchor="start", colour="#111", size=12):
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{html.escape(said)}</text>'


def bars(title, lines, value, unit):
    """One bar a contestant."""
    lines = sorted(lines, key=lambda line: ORDER.index(line["who"]))
    most, parts = max(map(value, lines)), [text(10, 20, title, size=14)]
    for row, line in enumerate(lines):
        y, length = 34 + row * 24, 440 * value(line) / most
        colour = COLOURS.get(line["who"], OTHERS)
        parts += [text(100, y + 13, line["who"], "end"), text(114 + length, y + 13, f"{number(value(line))} {unit}"),
                  f'<rect x="108" y="{y}" width="{max(length, 1):.1f}" height="17" fill="{colour}"/>']
    return svg(680, 44 + 24 * len(lines), parts)


def curve(title, lines, value, unit):
    """One line a contestant over the number of objects, both axes logarithmic."""
    low, high = min(map(value, lines)), max(map(value, lines))
    counts = sorted({line["count"] for line in lines})
    bottom, top = math.floor(math.log10(low)), max(math.ceil(math.log10(high)), math.floor(math.log10(low)) + 1)
    x = lambda count: 70 + 480 * math.log10(count / counts[0]) / math.log10(counts[-1] / counts[0])
    y = lambda amount: 250 - 200 * (math.log10(amount) - bottom) / (top - bottom)
    parts = [text(10, 20, title, size=14)]
    for power in range(bottom, top + 1):
        at = y(10**power)
        parts += [f'<line x1="70" x2="550" y1="{at:.0f}" y2="{at:.0f}" stroke="#ddd"/>',
                  text(62, at + 4, f"{10**power:g} {unit}", "end")]
    parts += [text(x(count), 270, f"{count:,}", "middle") for count in counts]
    named = []
    for place, who in enumerate(who for who in ORDER if any(line["who"] == who for line in lines)):
        points = [(x(line["count"]), y(value(line))) for line in sorted(lines, key=lambda line: line["count"])
                  if line["who"] == who]
        colour = COLOURS.get(who, OTHERS)
        joined = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2" '
                     f'stroke-dasharray="{DASHES[place % 3]}"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in points]
        at = points[-1][1] + 4
        while any(abs(at - other) < 14 for other in named):  # names that would lie on each other
            at += 14
        named.append(at)
        parts.append(text(points[-1][0] + 8, at, who, colour=colour))
    return svg(680, 285, parts)


def plots(lines_of):
    """File name and drawing, for what was measured."""
    for name, title in (("a", "SeaweedFS"), ("b", "a store that answers at once"), ("c", "100 ms a request")):
        if lines := lines_of(name):
            most = max(line["count"] for line in lines)
            lines = [line for line in lines if line["count"] == most]
            yield f"{name}.svg", bars(f"({name}) {most:,} objects, {title}: objects a second", lines, rate, "/s")
            yield f"{name}-cpu.svg", bars(f"({name}) processor time a 1000 objects", lines, cpu, "ms")
    if len({line["count"] for line in lines_of("f")}) > 1:
        yield "f.svg", curve("(f) seconds for so many objects", lines_of("f"), lambda line: line["seconds"], "s")
        yield "f-memory.svg", curve("(f) peak memory for so many objects", lines_of("f"), mib, "MiB")


def write(known, docs):
    lines_of = lambda name: [line for line in known["lines"] if line["scenario"] == name]
    page = (docs / "performance.md").read_text()
    blocks = {name: table(lines_of(name), columns) for name, columns in TABLES.items() if lines_of(name)}
    blocks["machine"] = machine(known)
    for name, block in blocks.items():
        marked = re.compile(rf"(<!-- {name}: written by scripts/bench -->\n).*?(<!-- end -->)", re.S)
        page, found = marked.subn(lambda match: f"{match[1]}{block}\n{match[2]}", page)
        assert found == 1, f"performance.md has no place for {name}"
    (docs / "performance.md").write_text(page)
    (docs / "performance").mkdir(exist_ok=True)
    for name, drawing in plots(lines_of):
        (docs / "performance" / name).write_text(drawing)
