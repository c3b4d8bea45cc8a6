-- What a bucket holds beside its current objects, and purges that wait for a date.
alter table reprieve.tombstones
    -- unfinished multipart uploads that were aborted; no listing of objects shows them, so they are not in objects_listed
    add column uploads_aborted bigint not null default 0 check (uploads_aborted >= 0),
    -- of objects_deleted and objects_absent: versions that were not current, and delete markers
    add column versions_gone bigint not null default 0 check (versions_gone >= 0),
    add column markers_gone bigint not null default 0 check (markers_gone >= 0),
    -- stuck, but not for good: when what is left is no longer locked
    add column retry_at timestamptz check (retry_at is null or state = 'stuck'),
    add constraint kinds_are_parts check (versions_gone + markers_gone <= objects_deleted + objects_absent);

-- what waits for such a date comes due as well
drop index reprieve.tombstones_due;
create index tombstones_due on reprieve.tombstones (next_attempt_at)
    where state in ('trashed', 'blocked', 'purging') or retry_at is not null;
