
-- Dormouse: who creates the extension may call what its script took from PUBLIC, and may pass that on. pageinspect's
-- functions ask for a superuser themselves, so they run as one; they read pages and run nothing of a tenant's.
DO LANGUAGE plpgsql $dormouse$
DECLARE
  path pg_catalog.text := pg_catalog.current_setting('search_path');
  f pg_catalog.regprocedure;
BEGIN
  PERFORM pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', true);
  IF '@extname@' = 'pageinspect' THEN
    FOR f IN
      SELECT p.oid FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
        JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
        JOIN pg_language l ON l.oid = p.prolang
      WHERE e.extname = '@extname@' AND d.deptype = 'e' AND l.lanname = 'c'
    LOOP
      EXECUTE format('ALTER FUNCTION %s SECURITY DEFINER', f);
      EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', f);
    END LOOP;
  END IF;
  FOR f IN
    SELECT p.oid FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid
      JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
    WHERE e.extname = '@extname@' AND d.deptype = 'e' AND NOT has_function_privilege('public', p.oid, 'execute')
  LOOP
    EXECUTE format('GRANT EXECUTE ON FUNCTION %s TO @extowner@ WITH GRANT OPTION', f);
  END LOOP;
  PERFORM pg_catalog.set_config('search_path', path, true);
END
$dormouse$;
