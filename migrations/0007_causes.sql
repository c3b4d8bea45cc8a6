-- What a request belongs to elsewhere: kept with its tombstone until the purge, days later, and with each message that
-- comes of it. A row from before has none.
alter table reprieve.tombstones
    add column correlation_id text,
    -- W3C trace context
    add column traceparent text,
    add column tracestate text;

-- beside its correlation_id, which until now only replies had
alter table reprieve.outbox
    add column traceparent text,
    add column tracestate text;

alter table reprieve.audit
    add column correlation_id text;
