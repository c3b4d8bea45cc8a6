"""Reprieve and its peers empty the same prefixes, by turns, and each is measured. `scripts/bench` is the way in.

Nothing here starts anything on a machine's own ports or directories: `bench-servers` keeps private servers, which end
with it. What is left after each run is counted on the server, not asked of the client.
"""
import argparse
import datetime
import json
import os
import pathlib
import signal
import statistics
import sys

import contestants
import report

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "performance.json"

# Name, what the synthetic S3 does (None: SeaweedFS), objects, how many of whom.
FAULTS = {"seed": 7, "unavailable": 0.20, "key_errors": 0.01, "cut": 0.05}
LIMIT = 3500
EVERYONE = ["reprieve", "s5cmd", "rclone", "boto3", "minio-py", "bare"]
SCENARIOS = {
    "a": dict(behaviour=None, objects=[20_000, 100_000], smoke=[1_200], who=EVERYONE),
    "b": dict(behaviour={}, objects=[200_000], smoke=[3_000], who=EVERYONE),
    # single deletes, one round trip each, would take rclone an hour
    "c": dict(behaviour={"latency_ms": 100}, objects=[100_000], smoke=[3_000],
              who=[who for who in EVERYONE if who != "rclone"]),
    "d": dict(behaviour=FAULTS, objects=[20_000], smoke=[3_000], who=[who for who in EVERYONE if who != "bare"]),
    "e": dict(behaviour={"keys_a_second": LIMIT}, objects=[200_000], smoke=[5_000],
              who=["reprieve", "s5cmd", "boto3", "minio-py"]),
    "f": dict(behaviour={}, objects=[1_000, 10_000, 100_000, 1_000_000], smoke=[1_000, 2_000],
              who=["reprieve", "s5cmd"]),
    "g": dict(objects=[10_000], smoke=[30], who=["reprieve"]),
    "h": dict(objects=[100_000, 1_000_000], smoke=[2_000], who=["reprieve", "one statement"]),
}
KINDS = ["flat", "heimdall", "hex"]


class Failed(Exception):
    """A contestant left something, or a run could not be carried out."""


def empty_a_prefix(bench, behaviour, who, objects, names):
    """One run of (a) to (f)."""
    place = bench.place(behaviour, objects, names)
    run = bench.contestants[who](place)
    run.update(bench.counts(place))
    if behaviour and "keys_a_second" in behaviour:
        rate = behaviour["keys_a_second"]
        # a full second's worth is there at the beginning
        run["share_of_limit"] = objects / (rate + rate * run["seconds"])
    return run


def many_small(bench, count):
    """(g): a backlog of datasets of three objects and a row; and then as many a second as one process keeps up with."""
    return bench.reprieve.many(count, objects=3)


def child_rows(bench, who, count):
    """(h): one dataset with so many rows and no object."""
    return bench.reprieve.rows(count) if who == "reprieve" else bench.reprieve.one_statement(count)


def runs_of(bench, name, options):
    """Every run of a scenario, the contestants by turns."""
    scenario = SCENARIOS[name]
    counts = scenario["smoke"] if options.smoke else [options.objects] if options.objects else scenario["objects"]
    who = [one for one in scenario["who"] if one in options.who]
    for count in counts:
        for turn in range(options.runs):
            for one in who:
                # the same shape for each in a turn, another one in the next
                names = options.names or (KINDS[turn % 3] if options.smoke else "flat")
                if name == "g":
                    run = many_small(bench, count)
                elif name == "h":
                    run = child_rows(bench, one, count)
                else:
                    run = empty_a_prefix(bench, scenario["behaviour"], one, count, names)
                run = {"scenario": name, "who": one, "count": count, "names": names, **run}
                print(summary(run), flush=True)
                check(run, strict=options.smoke)
                yield run


def summary(run):
    rate = run["count"] / run["seconds"] if run["seconds"] else 0
    extra = "".join(f" {key}={run[key]}" for key in ("left", "error", "throttled", "latency") if run.get(key))
    return (f"({run['scenario']}) {run['count']:>9,} {run['who']:<14} {run['seconds']:8.2f} s {rate:>10,.0f}/s"
            f" {run['cpu'] * 1e6 / run['count']:8.2f} ms cpu a 1000 {run['rss'] / 2**20:7.1f} MiB{extra}")


def check(run, strict):
    """Reprieve has to do all of it, and say so, whatever the server does; peers are only watched."""
    if run["who"] not in ("reprieve", "bare"):
        return
    wrong = [f"{key} is {run[key]}" for key in ("left", "strangers", "error") if run.get(key)]
    if run["who"] == "reprieve" and run.get("receipt", run["count"]) != run["count"]:
        wrong.append(f"the receipt says {run['receipt']}")
    if wrong:
        message = f"({run['scenario']}) {run['who']}: " + ", ".join(wrong)
        if strict:
            raise Failed(message)
        print("WRONG:", message, flush=True)


def medians(runs):
    """One line for each scenario, count and contestant: the median of each figure, and the extremes of the time."""
    grouped = {}
    for run in runs:
        grouped.setdefault((run["scenario"], run["count"], run["who"]), []).append(run)
    lines = []
    for (scenario, count, who), same in grouped.items():
        line = {"scenario": scenario, "count": count, "who": who, "runs": len(same)}
        for key in same[0]:
            values = [run.get(key) for run in same]
            if key not in line and all(isinstance(value, (int, float)) for value in values):
                line[key] = statistics.median(values)
        times = [run["seconds"] for run in same]
        errors = [run["error"] for run in same if run.get("error")]
        line |= {"fastest": min(times), "slowest": max(times), "errors": len(errors), "names": same[0]["names"]}
        if errors:
            line["error"] = errors[0]
        lines.append(line)
    return lines


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.split("\n", 1)[0])
    parser.add_argument("scenarios", nargs="*", metavar="a..h", help="which scenarios [default: all]")
    parser.add_argument("--runs", type=int, default=3, help="runs of each, by turns; the median counts [3]")
    parser.add_argument("--objects", type=int, help="objects, datasets (g) or rows (h), instead of the scenario's")
    parser.add_argument("--names", choices=KINDS, help="how the keys look [flat]")
    parser.add_argument("--who", type=lambda text: text.split(","), help="contestants, comma-separated [all]")
    parser.add_argument("--smoke", action="store_true", help="a few objects, Reprieve alone: does it run and leave nothing")
    parser.add_argument("--report", action="store_true", help="only write docs/performance.md anew from the last results")
    options = parser.parse_args()
    unknown = [name for name in options.scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(f"no scenario {unknown[0]}; there are: {' '.join(SCENARIOS)}")
    options.scenarios = options.scenarios or list(SCENARIOS)
    if options.smoke:
        options.runs, options.who = 1, options.who or ["reprieve", "bare"]
    options.who = options.who or EVERYONE + ["one statement"]
    return options


def main():
    options = arguments()
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"lines": []}
    if not options.report:
        target = pathlib.Path(os.environ["BENCH_BINARIES"])
        with contestants.Bench(ROOT, target) as bench:
            runs = [run for name in options.scenarios for run in runs_of(bench, name, options)]
            machine = bench.machine()
        if options.smoke:
            return print("smoke: every run left nothing, and every receipt is right")
        lines = medians(runs)
        stamp = {"date": datetime.date.today().isoformat(), "commit": machine.pop("commit")}
        fresh = {(line["scenario"], line["count"], line["who"]) for line in lines}
        kept = [line for line in known["lines"] if (line["scenario"], line["count"], line["who"]) not in fresh]
        known = {"machine": machine, "lines": kept + [line | stamp for line in lines]}
        known["lines"].sort(key=lambda line: (line["scenario"], line["count"], (EVERYONE + [line["who"]]).index(line["who"])))
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    report.write(known, ROOT / "docs")
    print(f"written: {RESULTS.relative_to(ROOT)}, docs/performance.md and its plots")


if __name__ == "__main__":
    # ended from outside, it still ends what it started
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    try:
        main()
    except Failed as failed:
        sys.exit(f"FAILED: {failed}")
