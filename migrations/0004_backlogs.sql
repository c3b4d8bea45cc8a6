-- Long backlogs: purge tasks may wait in the outbox by the ten thousand while events and replies go on, so each has an
-- index of its own and neither is read on the way to the other.
-- The drop comes first, as it takes the stronger lock: after the others it would wait for who has read the outbox and waits
-- to write to it.
drop index reprieve.outbox_available;
create index outbox_tasks on reprieve.outbox (available_at, id) where topic = 'purge';
create index outbox_messages on reprieve.outbox (available_at, id) where topic <> 'purge';
