-- A purge that takes its worker down every time must not go on for ever in silence.
alter table reprieve.tombstones
    -- workers that died with its lease, or panicked, since it last got further; as many as purge.max_attempts and it is stuck
    add column deaths integer not null default 0 check (deaths >= 0);
