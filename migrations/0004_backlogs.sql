-- Long backlogs: purge tasks may wait in the outbox by the ten thousand while events and replies go on, so each has an
-- index of its own and neither is read on the way to the other.
create index outbox_tasks on reprieve.outbox (available_at, id) where topic = 'purge';
create index outbox_messages on reprieve.outbox (available_at, id) where topic <> 'purge';
drop index reprieve.outbox_available;
