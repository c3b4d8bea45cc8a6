-- The guard looks before it locks, and again after, and sees beyond the snapshot of its transaction.
--
-- Before it locks: who activates a model holds the model's row and waits for the resource's; the end of a purge holds the
-- resource's row and waits for the model's, which a foreign key sets to null. Whatever is in the trash already is
-- refused before there is anything to wait for.
-- Beyond its snapshot: under REPEATABLE READ and SERIALIZABLE a transaction does not see a tombstone that was written
-- after it began, nor that its purge has begun. A unique index does: the guard tries to write an open tombstone of its
-- own, and takes it back at once.
create or replace function reprieve.guard() returns trigger language plpgsql security definer
    set search_path = pg_catalog, pg_temp as $$
declare
    used text := to_jsonb(new) ->> tg_argv[3];
    counts boolean := true;
    sees_all constant boolean := current_setting('transaction_isolation') in ('read committed', 'read uncommitted');
    buried boolean;
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
    for look in 1..2 loop
        buried := sees_all;
        if not sees_all then
            begin
                insert into reprieve.tombstones
                        (id, kind, resource_id, actor, origin, purge_after, locations, next_attempt_at)
                    values (gen_random_uuid(), tg_argv[0], used, 'guard', 'guard', now(), '[]', now());
                raise exception using errcode = 'RPRV0', message = 'takes the trial back';
            exception
                when unique_violation then buried := true;
                when sqlstate 'RPRV0' then null;
            end;
        end if;
        if buried then
            select t.id, t.state, t.purge_after into grave from reprieve.tombstones t
                where t.kind = tg_argv[0] and t.resource_id = used
                  and t.state in ('trashed', 'blocked', 'purging', 'stuck');
            if found then
                raise exception '% % is in the trash (%) and cannot be used', tg_argv[0], used, grave.state
                    using errcode = 'foreign_key_violation',
                    hint = case when grave.state in ('trashed', 'blocked')
                        then format('Restore it first: reprieve restore %s %s', tg_argv[0], used)
                        else 'Its purge has begun; it cannot be restored.' end;
            elsif not sees_all then
                raise exception '% % is in the trash and cannot be used', tg_argv[0], used
                    using errcode = 'foreign_key_violation',
                    hint = 'It went there after this transaction began; a new one sees how to restore it.';
            end if;
        end if;
        if look = 1 then
            execute format('select 1 from %s where %s = ($1).%I for key share', tg_argv[1], tg_argv[2], tg_argv[3])
                using new;
        end if;
    end loop;
    return new;
end $$;
