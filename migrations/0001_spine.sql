-- The tables of the design: tombstones, outbox, audit, holds, pauses, and the memory of answered requests.
-- Every time is the database's clock; no process's own clock decides what is due.
create schema if not exists reprieve;

create table reprieve.tombstones (
    id uuid primary key,
    kind text not null,
    resource_id text not null,
    name text,
    state text not null default 'trashed'
        check (state in ('trashed', 'blocked', 'purging', 'stuck', 'restored', 'purged')),
    actor text not null,
    origin text not null,
    reason text,
    trashed_at timestamptz not null default now(),
    purge_after timestamptz not null,
    parent uuid references reprieve.tombstones (id),
    -- the places to empty, fixed when the tombstone is written
    locations jsonb not null,
    blockers jsonb not null default '[]',
    attempts integer not null default 0 check (attempts >= 0),
    -- looks in vain (in use, held, a server away) since it last got further; spaces the next look
    waits integer not null default 0 check (waits >= 0),
    next_attempt_at timestamptz not null,
    -- when the relay last handed its task to the broker
    queued_at timestamptz,
    last_error text,
    fence bigint not null default 0,
    lease_owner text,
    lease_until timestamptz,
    -- where the purge goes on: location, pass, cursor, batch in flight
    checkpoint jsonb,
    objects_listed bigint not null default 0,
    objects_deleted bigint not null default 0,
    objects_absent bigint not null default 0,
    objects_failed bigint not null default 0,
    objects_unknown bigint not null default 0,
    bytes_freed bigint not null default 0,
    rows_deleted bigint not null default 0,
    row_found boolean,
    purging_at timestamptz,
    closed_at timestamptz,
    constraint window_is_not_negative check (purge_after >= trashed_at),
    constraint counters_add_up
        check (objects_listed = objects_deleted + objects_absent + objects_failed + objects_unknown),
    constraint counters_are_counts
        check (least(objects_deleted, objects_absent, objects_failed, objects_unknown, bytes_freed, rows_deleted) >= 0),
    constraint closed_when_final check ((closed_at is not null) = (state in ('restored', 'purged'))),
    constraint no_return_is_dated check ((purging_at is not null) = (state in ('purging', 'stuck', 'purged')))
);

-- at most one open tombstone for a resource
create unique index tombstones_open on reprieve.tombstones (kind, resource_id)
    where state in ('trashed', 'blocked', 'purging', 'stuck');
create index tombstones_due on reprieve.tombstones (next_attempt_at)
    where state in ('trashed', 'blocked', 'purging');
-- as lists show them, newest first
create index tombstones_by_age on reprieve.tombstones (trashed_at desc, id desc);
create index tombstones_by_state on reprieve.tombstones (state, trashed_at desc);
create index tombstones_by_resource on reprieve.tombstones (kind, resource_id, trashed_at desc);
create index tombstones_by_parent on reprieve.tombstones (parent) where parent is not null;

create table reprieve.outbox (
    id uuid primary key,
    -- purge: the purge queue; event: the events exchange; reply: the queue named in destination
    topic text not null check (topic in ('purge', 'event', 'reply')),
    destination text not null,
    payload jsonb not null,
    correlation_id text,
    available_at timestamptz not null default now(),
    tombstone_id uuid references reprieve.tombstones (id),
    attempts integer not null default 0,
    leased_until timestamptz,
    last_error text
);
-- one pending task for a tombstone: writing it again moves it
create unique index outbox_one_task on reprieve.outbox (tombstone_id) where topic = 'purge';
-- as the relay takes them
create index outbox_available on reprieve.outbox (available_at, id);

create table reprieve.audit (
    id bigint generated always as identity primary key,
    at timestamptz not null default now(),
    event text not null,
    tombstone_id uuid,
    kind text,
    resource_id text,
    actor text not null,
    origin text not null,
    reason text,
    details jsonb not null default '{}'
);
create index audit_by_resource on reprieve.audit (kind, resource_id, id);
create index audit_by_tombstone on reprieve.audit (tombstone_id, id);

create function reprieve.refuse_change() returns trigger language plpgsql as $$
begin
    raise exception 'reprieve.audit is append-only: % is refused', tg_op using errcode = 'integrity_constraint_violation';
end $$;
create trigger append_only before update or delete on reprieve.audit
    for each row execute function reprieve.refuse_change();
create trigger append_only_truncate before truncate on reprieve.audit
    for each statement execute function reprieve.refuse_change();

create table reprieve.holds (
    kind text not null,
    resource_id text not null,
    actor text not null,
    reason text,
    created_at timestamptz not null default now(),
    primary key (kind, resource_id)
);

create table reprieve.pauses (
    -- all, kind or store; the name is empty for all
    scope text not null check (scope in ('all', 'kind', 'store')),
    name text not null default '',
    actor text not null,
    reason text,
    created_at timestamptz not null default now(),
    primary key (scope, name)
);

-- answers to requests that carried a message id, so that a duplicate changes nothing
create table reprieve.requests (
    message_id text primary key,
    answered_at timestamptz not null default now(),
    -- sha256 of the body: two services may use the same id for different wishes
    digest bytea not null,
    answer jsonb not null
);
create index requests_by_age on reprieve.requests (answered_at);

-- The guard: refuses a new use of a resource that is in the trash. Arguments of the trigger: kind, the resource's
-- quoted table, its quoted id column, the using row's column, and a condition on the using row (or empty).
-- It locks the resource's row first, as trash and claim do, so the one that comes second sees what the first has done.
create function reprieve.guard() returns trigger language plpgsql security definer
    set search_path = pg_catalog, pg_temp as $$
declare
    used text := to_jsonb(new) ->> tg_argv[3];
    counts boolean := true;
    grave record;
begin
    if used is null then
        return new;
    end if;
    if tg_argv[4] <> '' then
        execute format('select (%s) is true from (select ($1).*) as r', tg_argv[4]) into counts using new;
        if not counts then
            return new;
        end if;
    end if;
    if tg_op = 'UPDATE' and to_jsonb(old) ->> tg_argv[3] is not distinct from used then
        if tg_argv[4] = '' then
            return new;
        end if;
        execute format('select (%s) is true from (select ($1).*) as r', tg_argv[4]) into counts using old;
        if counts then
            return new; -- it was a use before: nothing new
        end if;
    end if;
    execute format('select 1 from %s where %s = ($1).%I for key share', tg_argv[1], tg_argv[2], tg_argv[3]) using new;
    select t.id, t.state, t.purge_after into grave from reprieve.tombstones t
        where t.kind = tg_argv[0] and t.resource_id = used and t.state in ('trashed', 'blocked', 'purging', 'stuck');
    if found then
        raise exception '% % is in the trash (%) and cannot be used', tg_argv[0], used, grave.state
            using errcode = 'foreign_key_violation',
            hint = case when grave.state in ('trashed', 'blocked')
                then format('Restore it first: reprieve restore %s %s', tg_argv[0], used)
                else 'Its purge has begun; it cannot be restored.' end;
    end if;
    return new;
end $$;
-- It runs what its arguments say with its owner's rights, so nobody else may make a trigger of it. Triggers that exist
-- fire for everybody: PostgreSQL asks for the right to execute when a trigger is made, not when it fires.
revoke execute on function reprieve.guard() from public;
