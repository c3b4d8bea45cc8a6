#!/usr/bin/env python3
"""The dashboard, in words: what each panel asks, what is too much, and what to do about it.

    docker/grafana/dashboard.py            writes dashboards/reprieve.json
    docker/grafana/dashboard.py --check    says whether that file is what this makes; changes nothing

Metrics: docs/metrics.md. Facts of the database are the same in every process that shows them, so they are taken as
`max` before anything is added up; what a process did is added up over all of them.
"""

import json
import sys
from pathlib import Path

sys.dont_write_bytecode = True
from panels import bars, board, lines, stat, table, variable

FILE = Path(__file__).parent / "dashboards" / "reprieve.json"

HOUR, DAY = 3600, 86400
JOB = 'job="$job"'
KIND = 'job="$job", kind=~"$kind"'
STORE = 'job="$job", store=~"$store"'
RATE = "[$__rate_interval]"


def rate(by, metric, matchers):
    return f"sum by ({by}) (rate({metric}{{{matchers}}}{RATE}))"


def quantile(of, by, metric, matchers):
    """Of a histogram."""
    return f"histogram_quantile({of}, {rate(f'le, {by}' if by else 'le', f'{metric}_bucket', matchers)})"


def growth(metric, matchers):
    """Over the time that is shown."""
    return f"sum(increase({metric}{{{matchers}}}[$__range]))"


def upto(yellow, red):
    """Good below `yellow`, bad from `red` on."""
    return [(None, "green"), (yellow, "yellow"), (red, "red")]


NONE = [(None, "green"), (1, "red")]

NEEDS_SOMEBODY = [
    stat("Overdue for", "How long the window of the oldest has been over that is neither purged, nor in use, nor "
         "stuck. More than some hours: look for silent workers, a pause, a hold or a store that is away.",
         "reprieveoverdue",
         {"": f'max(reprieve_oldest_overdue_seconds{{{KIND}, state=~"trashed|purging"}})'},
         unit="s", width=3, steps=upto(HOUR, 6 * HOUR), decimals=0),
    stat("Stuck", "Purges that cannot go on without help. `reprieve list --state stuck` says why; mend the cause, then "
         "`reprieve retry`.", "reprievepurgesstuck",
         {"": f'sum(max by (kind) (reprieve_open_tombstones{{{KIND}, state="stuck"}}))'}, width=3, steps=NONE),
    stat("Blocked for", "How long something has been due that is still in use. `reprieve list --state blocked` names "
         "who uses it: end the use, or restore it.", "reprieveblocked",
         {"": f'max(reprieve_oldest_overdue_seconds{{{KIND}, state="blocked"}})'},
         unit="s", width=3, steps=upto(DAY, 7 * DAY), decimals=0),
    stat("Dead letters", "Messages that were set aside. Each says why in its header `x-reprieve-reason`: mend the "
         "sender, then publish again or drop.", "reprievedeadletters",
         {"": f'max(reprieve_queue_messages{{{JOB}, queue="dead"}})'}, width=3, steps=NONE),
    stat("Oldest message due for", "How long the oldest message that is due has waited in the outbox. Growing: no "
         "relay, no broker, or more purges than the workers do.", "reprieveoutboxnotdraining",
         {"": f"max(reprieve_outbox_oldest_due_seconds{{{JOB}}})"}, unit="s", width=3, steps=upto(60, 300), decimals=0),
    stat("Throttled deletes", "Share of the delete requests that a store refuses as too fast, of the last ten minutes. "
         "Purges slow down by themselves; lasting: less load elsewhere, or a ceiling.", "reprievestorethrottling",
         {"": f'sum(rate(reprieve_store_requests_total{{{STORE}, operation="delete", result="throttled"}}[10m])) '
              f'/ sum(rate(reprieve_store_requests_total{{{STORE}, operation="delete"}}[10m]))'},
         unit="percentunit", width=3, steps=upto(0.05, 0.2), noValue="no deletes",
         mappings=[{"type": "special", "options": {"match": "nan", "result": {"text": "no deletes",
                                                                            "color": "green"}}}]),
    stat("Trashed in the last hour", "By every process and command, restored since or not. Many more than usual: is "
         "somebody deleting by mistake? `reprieve pause --all` stops purges.", "reprievetrashburst",
         {"": f"sum(max by (kind, origin) (reprieve_recently_trashed_tombstones{{{KIND}}}))"}, width=3),
    stat("Database", "Whether the database answered at the last scrape. Not: nothing is trashed, restored or purged "
         "until it is back.", "reprievedatabaseunreadable",
         {"": f"max(reprieve_database_up{{{JOB}}})"}, width=3, steps=[(None, "red"), (1, "green")],
         mappings=[{"type": "value", "options": {"0": {"text": "away"}, "1": {"text": "up"}}}]),
]

TRASH = [
    lines("In the trash, by state", "Tombstones that are not closed. `trashed` follows what people delete; the other "
          "three should come and go. One that only grows is work that nobody does.", "reprieveoverdue",
          {"{{state}}": f"sum by (state) (max by (kind, state) (reprieve_open_tombstones{{{KIND}}}))"}, stack=True),
    lines("Overdue longest, by kind and state", "How long the window of the oldest has been over. A line that climbs "
          "as fast as the clock is something that nobody gets done: `reprieve list` says what and why.",
          "reprieveoverdue",
          {"{{kind}} {{state}}": f"max by (kind, state) (reprieve_oldest_overdue_seconds{{{KIND}}})"},
          unit="s", steps=[(None, "transparent"), (6 * HOUR, "red")]),
    lines("Into the trash and out of it", "A minute: trashed and restored by HTTP and message (commands are seen in "
          "the panels of who deletes what), and purged. More in than out is a trash that grows.", "reprievebacklog",
          {"trashed": f"60 * sum(rate(reprieve_tombstones_trashed_total{{{KIND}}}{RATE}))",
           "restored": f"60 * sum(rate(reprieve_tombstones_restored_total{{{KIND}}}{RATE}))",
           "purged": f"60 * sum(rate(reprieve_purges_finished_total{{{KIND}}}{RATE}))"}, unit="cpm"),
    lines("Bytes in the trash", "By the platform's own column, of kinds that have a `size` in the map. What a purge of "
          "all of it will free; a restore window that is too long costs this.", "reprieveoverdue",
          {"{{kind}}": f"max by (kind) (reprieve_trash_bytes{{{KIND}}})"}, unit="bytes", stack=True,
          noValue="no kind has a size"),
    bars("Coming due", "Whose window ends within an hour, a day, a week: what the workers will have to do, and the "
         "last chance to restore or hold.", "reprievetrashburst",
         {"within {{within}}":
          f"sort(sum by (within) (max by (kind, within) (reprieve_coming_due_tombstones{{{KIND}}})))"}),
    stat("Held and paused", "Holds keep one resource each, pauses stop purges of everything, a kind or a store. "
         "Forgotten ones are the usual reason for overdue work: `reprieve list --holds`, `reprieve list --pauses`.",
         "reprievepaused",
         {"holds": f"max(reprieve_holds{{{JOB}}})", "pauses": f"sum(max by (scope) (reprieve_pauses{{{JOB}}}))"},
         width=8),
]

FREED = [
    stat("Freed in the time shown", "By purges that came to their end. Their receipts, one each, are in the audit log: "
         "`reprieve show KIND ID`.", "reprievebacklog",
         {"bytes": growth("reprieve_freed_bytes_total", KIND)}, unit="bytes", width=4),
    stat("Purged in the time shown", "Resources whose objects are verified gone and whose rows are deleted.",
         "reprievebacklog",
         {"purges": growth("reprieve_purges_finished_total", KIND)}, width=4, decimals=0),
    lines("Objects a second, by outcome", "At the end of their tries in one pass. `failed` and `unknown` are listed "
          "again in the next; lasting ones end as stuck, with the reason on the tombstone.", "reprievestorefailing",
          {"{{outcome}}": rate("outcome", "reprieve_objects_total", STORE)}, unit="cps", stack=True),
    lines("Bytes freed a second", "Counted when a purge comes to its end, so a large one is a peak.", "reprievebacklog",
          {"{{kind}}": rate("kind", "reprieve_freed_bytes_total", KIND)}, unit="Bps", stack=True),
    lines("Purges", "A minute: past the point of no return, finished, set aside, and looks that found something in "
          "use. Started without finished is work that piles up.", "reprievepurgesstuck",
          {name: f"60 * sum(rate(reprieve_purges_{name}_total{{{KIND}}}{RATE}))"
           for name in ("started", "finished", "stuck", "blocked")}, unit="cpm"),
    lines("How long a purge takes", "From the point of no return to its end, pauses and back-offs too: half are faster "
          "than the lower line, 95 of 100 than the upper.", "reprievebacklog",
          {"{{kind}} half": quantile(0.5, "kind", "reprieve_purge_duration_seconds", KIND),
           "{{kind}} 95 of 100": quantile(0.95, "kind", "reprieve_purge_duration_seconds", KIND)}, unit="s"),
    lines("How late it is done", "From the end of the window to the end of the purge, also while it was in use, held "
          "or paused. Growing otherwise: not enough workers, or a store that is slow or throttles.", "reprievebacklog",
          {"{{kind}} half": quantile(0.5, "kind", "reprieve_purge_lag_seconds", KIND),
           "{{kind}} 95 of 100": quantile(0.95, "kind", "reprieve_purge_lag_seconds", KIND)}, unit="s"),
]

STORES = [
    lines("Delete requests, by result", "`throttled`: the store asks for less, and gets it. `transient`: no answer, or "
          "an error that passes. `permanent`: refused for good; look at permissions and bucket.",
          "reprievestorethrottling",
          {"{{result}}": rate("result", "reprieve_store_requests_total", f'{STORE}, operation="delete"')},
          unit="reqps", stack=True),
    lines("Deletes in flight, and how many may be", "In flight by all together, and what each worker may. Flow "
          "control lowers that when a store throttles: at 1 for long, the store is the limit, and more workers help "
          "nothing.", "reprievestorethrottling",
          {"{{store}}/{{bucket}} allowed to {{instance}}": f"reprieve_store_requests_allowed{{{STORE}}} "
                                                           f'and on (instance) reprieve_role_info{{{JOB}, role="worker"}}',
           "{{store}}/{{bucket}} in flight": f"sum by (store, bucket) (reprieve_store_requests_in_flight{{{STORE}}})"}),
    lines("Pace that the store grants", "Objects a second that all processes keep to together, since the store asked "
          "for less; 0: it did not.", "reprievestorethrottling",
          {"{{store}}/{{bucket}}": f"sum by (store, bucket) (reprieve_store_paced_keys_per_second{{{STORE}}})"},
          unit="cps"),
    lines("Keys in one delete request", "How many a request of each worker may name. Below the configured "
          "`stores.NAME.batch_size`: the store refuses larger requests whole. At that for long: set it to "
          "that.",
          "reprievestorethrottling",
          {"{{store}}/{{bucket}} {{instance}}": f"reprieve_store_batch_size{{{STORE}}} "
                                                f'and on (instance) reprieve_role_info{{{JOB}, role="worker"}}'},
          width=6),
    lines("How long a request takes", "Half are faster than the lower line, 99 of 100 than the upper. Seconds for a "
          "delete: a smaller `stores.NAME.batch_size`.", "reprievestorefailing",
          {f"{operation} {name}": quantile(of, "", "reprieve_store_request_duration_seconds",
                                           f'{STORE}, operation="{operation}"')
           for operation in ("delete", "list") for of, name in ((0.5, "half"), (0.99, "99 of 100"))},
          unit="s", width=6),
    lines("Keys that were not deleted at the first try", "A second. `failed_permanent` is permissions, locks or a "
          "bucket's name; the others pass or are tried again.", "reprievestorefailing",
          {"{{outcome}}": rate("outcome", "reprieve_store_keys_total",
                               f'{STORE}, outcome=~"failed_transient|failed_throttled|failed_permanent|unknown"'),
           "tried again": f"sum(rate(reprieve_key_retries_total{{{STORE}}}{RATE}))"}, unit="cps", width=6),
    lines("HTTP requests for each call", "Well above 1: the S3 client repeats requests by itself, and the store is "
          "unwell. Below 1 is good: what is known of a bucket is not asked again.", "reprievestorefailing",
          {"{{store}}": f"{rate('store', 'reprieve_store_attempts_total', STORE)} "
                        f"/ {rate('store', 'reprieve_store_requests_total', STORE)}"}, decimals=2, width=6),
]

WHO = [
    lines("Trashed in the last hour, by kind and origin", "`api`, `message`, `cli`. Whose: `reprieve list`, in "
          "the column `by`; metrics hold no names. A step up that nobody announced: `reprieve pause --all`, then look.",
          "reprievetrashburst",
          {"{{kind}} {{origin}}": f"max by (kind, origin) (reprieve_recently_trashed_tombstones{{{KIND}}})"},
          stack=True),
    lines("Restored, by kind and origin",
          "A minute. Many: something deletes what is needed; its origin in the panel to the left.",
          "reprievetrashburst",
          {"{{kind}} {{origin}}": f"60 * {rate('kind, origin', 'reprieve_tombstones_restored_total', KIND)}"},
          unit="cpm"),
    lines("Requests, by origin and result", "A second, without dry runs and commands. `failed`: the database was away "
          "or busy; `malformed`: somebody sends what can never work.", "reprievedeadletters",
          {"{{origin}} {{result}}": rate("origin, result", "reprieve_requests_total", JOB)}, unit="reqps"),
    bars("Refused in the time shown", "The eight most frequent. `in_use`: the law at work. `past_return` of a restore: "
         "somebody came too late. `unsafe_place`: the map does not fit the platform's rows.", "reprieverestoretoolate",
         {"{{operation}}: {{reason}}":
          f"topk(8, sum by (operation, reason) (increase(reprieve_refusals_total{{{JOB}}}[$__range])))"}, decimals=0),
    lines("Left of the window when restored", "One in ten had less left than the lower line, half less than the upper. "
          "Close to 0: the retention of this kind is too short.", "reprieverestoretoolate",
          {"{{kind}} one in ten": quantile(0.1, "kind", "reprieve_restore_window_left_seconds", KIND),
           "{{kind}} half": quantile(0.5, "kind", "reprieve_restore_window_left_seconds", KIND)}, unit="s"),
    lines("HTTP requests, by status", "A second. `5xx`: the database, or a deadline; the log says which.",
          "reprieveservererrors", {"{{status}}": rate("status", "reprieve_http_requests_total", JOB)}, unit="reqps"),
]

MESSAGES = [
    lines("Outbox: due", "Messages that are due and not yet with the broker. Purge tasks wait here on purpose while "
          "`relay.max_queued` wait in the broker; events and replies never should.", "reprieveoutboxnotdraining",
          {"{{topic}}": f"max by (topic) (reprieve_outbox_due_rows{{{JOB}}})"}, stack=True),
    lines("Outbox: the oldest that is due", "Climbing as fast as the clock: no relay, or no broker.",
          "reprieveoutboxnotdraining",
          {"{{topic}}": f"max by (topic) (reprieve_outbox_oldest_due_seconds{{{JOB}}})"}, unit="s",
          steps=[(None, "transparent"), (300, "red")]),
    lines("Queues", "Messages that wait in the broker. `purge` at `relay.max_queued`: a backlog. `requests` growing: "
          "no intake. `dead`: nothing takes these but you.", "reprieveworkerssilent",
          {"{{queue}}": f"max by (queue) (reprieve_queue_messages{{{JOB}}})"}),
    lines("Deliveries, by how they ended", "A minute. `failed` is tried again, `deferred` is held or paused; `panic` "
          "is a bug, `error` a map that does not fit or a database that is busy.", "reprievedeliveriesbroken",
          {"{{end}}": f"60 * {rate('end', 'reprieve_deliveries_total', JOB)}"}, unit="cpm", stack=True),
    lines("Purges at work", "Deliveries in progress, by process. At `purge.concurrency` for long, with a backlog: more "
          "workers. At 0 with a queue: silent workers.", "reprieveworkerssilent",
          {"{{instance}}": f"reprieve_deliveries_in_progress{{{JOB}}} "
                           f'and on (instance) reprieve_role_info{{{JOB}, role="worker"}}'},
          stack=True),
    lines("Published, and not taken", "A second, by topic. What the broker does not take is tried again: is the "
          "topology there? `reprieve check`.", "reprieveoutboxnotdraining",
          {"{{topic}} confirmed": rate("topic", "reprieve_published_total", JOB),
           "{{topic}} not taken": rate("topic", "reprieve_publish_failures_total", JOB)}, unit="cps"),
    lines("Connected to the broker", "Processes whose consumer or publisher is up, by role. They connect anew by "
          "themselves; 0 for long: the log says why.", "reprievebrokerdisconnected",
          {"{{role}}": f"sum by (role) (reprieve_broker_connected{{{JOB}}})"}, decimals=0),
    lines("Connected anew", "Connections to the broker that had to be made again, in the last ten minutes.",
          "reprievebrokerdisconnected",
          {"{{role}}": f"sum by (role) (increase(reprieve_reconnects_total{{{JOB}}}[10m]))"}),
    lines("Tasks written again", "By the sweeper, in the last ten minutes: lost by a broker or a crash. Constantly: "
          "`sweeper.redeliver_after` is shorter than the backlog's wait.", "reprievesweepersilent",
          {"tasks": f"sum(increase(reprieve_swept_total{{{JOB}}}[10m]))"}),
]

PROCESSES = [
    lines("Database connections in use", "The share of each process's pool. At 100 % for long: raise "
          "`database.max_connections`, or lower `purge.concurrency`.", "reprievepoolexhausted",
          {"{{instance}}": f'sum by (instance) (reprieve_database_connections{{{JOB}, state="in_use"}}) '
                           f"/ sum by (instance) (reprieve_database_connections_max{{{JOB}}})"},
          unit="percentunit", max=1, steps=[(None, "transparent"), (0.9, "red")]),
    lines("Wait for a connection", "On average. More than some milliseconds: the pool is too small, or the database "
          "slow to connect to.", "reprievepoolexhausted",
          {"{{instance}}": f"{rate('instance', 'reprieve_database_acquire_seconds_total', JOB)} "
                           f"/ {rate('instance', 'reprieve_database_acquires_total', JOB)}"}, unit="s"),
    lines("Reading the facts", "How long the statements behind these panels take; at five seconds they are given up, "
          "and the panels stand still. Seconds: millions of open tombstones, or a busy database.", "reprievefactsold",
          {"{{instance}}": f"reprieve_database_read_duration_seconds{{{JOB}}}"}, unit="s"),
    lines("Processors", "Cores in use by each process.", "reprieverestarting",
          {"{{instance}}": f"rate(process_cpu_seconds_total{{{JOB}}}{RATE})"}, decimals=2),
    lines("Memory", "Resident, by process. It hardly depends on how many objects a purge has.", "reprieverestarting",
          {"{{instance}}": f"process_resident_memory_bytes{{{JOB}}}"}, unit="bytes"),
    lines("Open files", "By process; connections are files, too.", "reprieverestarting",
          {"{{instance}}": f"process_open_fds{{{JOB}}}"}, decimals=0),
    table("Processes", "Which version runs where, with which roles. Each role has to run somewhere; two versions for "
          "long are an upgrade that nobody finished.", "reprieverolemissing",
          {"": f"reprieve_role_info{{{JOB}}} * on (instance) group_left (version) reprieve_build_info{{{JOB}}}"},
          {"instance": "process", "role": "role", "version": "version"}, width=12),
    stat("Processes that started in the last hour", "Restarts, too. More than you made: the logs and the kernel's (out "
         "of memory?).", "reprieverestarting",
         {"": f"count(time() - process_start_time_seconds{{{JOB}}} < 3600) or vector(0)"}, width=6),
    stat("Processes that have not started",
         "They wait for the database: `/health/startup` of each says since when.", "reprievenotstarted",
         {"": f"count(reprieve_started{{{JOB}}} == 0) or vector(0)"}, width=6, steps=NONE),
]

VARIABLES = [
    {"type": "datasource", "name": "datasource", "label": "Prometheus", "query": "prometheus", "refresh": 1,
     "current": {"text": "Prometheus", "value": "prometheus"}},
    {**variable("job", "Job", "label_values(reprieve_build_info, job)", "Which installation, by its scrape job."),
     "multi": False, "includeAll": False, "allValue": None, "current": {"text": "reprieve", "value": "reprieve"}},
    variable("kind", "Kind", 'label_values(reprieve_open_tombstones{job="$job"}, kind)', "Kinds of the resource map."),
    variable("store", "Store", 'label_values(reprieve_objects_total{job="$job"}, store)',
             "Stores of the configuration."),
    {"type": "textbox", "name": "docs", "label": "Address of docs/", "query": "docs",
     "description": "Where your people read the pages of docs/; links to the runbook begin with it.",
     "current": {"text": "docs", "value": "docs"}},
]

DASHBOARD = board(
    title="Reprieve",
    uid="reprieve",
    says="The trash bin: is anything overdue, stuck, blocked or growing; what was freed and how fast; is the store "
         "throttling; who deletes what; queue, outbox, consumers; pool and processes.",
    tags=["reprieve"],
    variables=VARIABLES,
    rows=[
        ("Does anything need somebody?", 4, NEEDS_SOMEBODY),
        ("What is in the trash", 7, TRASH),
        ("What was freed, and how fast", 7, FREED),
        ("Is the store throttling?", 7, STORES),
        ("Who deletes what", 7, WHO),
        ("Outbox, queues, consumers", 7, MESSAGES),
        ("Pool and processes", 7, PROCESSES),
    ],
)


def main():
    text = json.dumps(DASHBOARD, indent=1) + "\n"
    if sys.argv[1:] == ["--check"]:
        if FILE.read_text() != text:
            sys.exit(f"{FILE} is not what {__file__} makes: run it")
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        FILE.write_text(text)


if __name__ == "__main__":
    main()
