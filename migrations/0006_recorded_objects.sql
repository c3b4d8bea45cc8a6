-- Objects that are not below a prefix of their own: what a resource names is recorded key by key when it is trashed, since
-- the rows that name it may go before the objects do.
create table reprieve.recorded_objects (
    -- no foreign key: a tombstone is never deleted, and a check for each of a million rows would be paid for nothing
    tombstone_id uuid not null,
    -- which of the tombstone's buckets with recorded keys, counted from 0
    place smallint not null check (place >= 0),
    -- as the store compares them: bytewise
    key text collate "C" not null check (octet_length(key) between 1 and 1024),
    -- delete it only while the store has it with this ETag, without its quotes
    etag text,
    primary key (tombstone_id, place, key)
);
-- who else in the trash has recorded a key
create index recorded_objects_by_key on reprieve.recorded_objects using hash (key);

alter table reprieve.tombstones
    -- objects that stay, since another resource names them too: no part of objects_listed
    add column objects_kept bigint not null default 0 check (objects_kept >= 0);
