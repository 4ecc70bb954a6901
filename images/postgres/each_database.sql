-- Run in every database of the template, template0 included, so that it holds in whatever a tenant creates from them.
GRANT EXECUTE ON FUNCTION
  pg_reload_conf(), pg_show_all_file_settings(), pg_switch_wal(),
  pg_stat_reset(), pg_stat_reset_shared(text), pg_stat_reset_slru(text), pg_stat_reset_single_table_counters(oid),
  pg_stat_reset_single_function_counters(oid), pg_stat_reset_replication_slot(text)
  TO app WITH GRANT OPTION;
GRANT SELECT ON pg_file_settings TO app WITH GRANT OPTION;

-- As if initdb had granted it: pg_dump would else write it into every dump, where it means nothing.
UPDATE pg_init_privs i SET initprivs = p.proacl FROM pg_proc p
  WHERE i.classoid = 'pg_proc'::regclass AND i.objoid = p.oid AND i.privtype = 'i' AND p.proacl IS NOT NULL;
UPDATE pg_init_privs i SET initprivs = c.relacl FROM pg_class c
  WHERE i.classoid = 'pg_class'::regclass AND i.objoid = c.oid AND i.objsubid = 0 AND i.privtype = 'i'
  AND c.relacl IS NOT NULL;
