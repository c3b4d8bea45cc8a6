-- Apart from the columns of 0007: their locks on three tables are not held while this reads all tombstones.
create index tombstones_by_correlation on reprieve.tombstones (correlation_id) where correlation_id is not null;
