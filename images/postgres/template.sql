-- The owner's role: all that PostgreSQL lets a role have that is not the superuser's, and can pass on to the roles it
-- makes. docs/owner-role.md lists what it can do and what not, and why.
CREATE ROLE app LOGIN CREATEDB CREATEROLE REPLICATION BYPASSRLS NOSUPERUSER;

-- Not among them: what reads or writes files or runs programs on the server, pg_create_subscription (a guest has no
-- network), pg_use_reserved_connections.
GRANT pg_monitor, pg_signal_backend, pg_checkpoint, pg_maintain, pg_read_all_data, pg_write_all_data
  TO app WITH ADMIN OPTION;

-- Settings that PostgreSQL leaves to superusers and that can do no harm beyond the database: for sessions, roles,
-- databases, and by ALTER SYSTEM for the whole guest. What sizes memory or WAL, names files or commands, or makes
-- storage unsafe is not here. Of those that need a restart, a value that prevents it is undone by the guest.
GRANT SET, ALTER SYSTEM ON PARAMETER
  session_replication_role, deadlock_timeout, temp_file_limit, session_preload_libraries,
  commit_delay, wal_compression, compute_query_id,
  track_activities, track_io_timing, track_wal_io_timing, track_functions,
  log_statement, log_duration, log_min_duration_statement, log_min_duration_sample, log_statement_sample_rate,
  log_transaction_sample_rate, log_parameter_max_length, log_lock_waits, log_temp_files, log_error_verbosity,
  log_min_messages, log_min_error_statement, log_replication_commands, log_disconnections, log_connections,
  auto_explain.log_min_duration, auto_explain.log_analyze, auto_explain.log_buffers, auto_explain.log_format,
  auto_explain.log_level, auto_explain.log_nested_statements, auto_explain.log_parameter_max_length,
  auto_explain.log_settings, auto_explain.log_timing, auto_explain.log_triggers, auto_explain.log_verbose,
  auto_explain.log_wal, auto_explain.sample_rate,
  pg_stat_statements.track, pg_stat_statements.track_utility, pg_stat_statements.track_planning,
  plpgsql.variable_conflict, plpgsql.print_strict_params
  TO app WITH GRANT OPTION;

-- Settings that any session may change for itself, or that are read anew when told to.
GRANT ALTER SYSTEM ON PARAMETER
  enable_async_append, enable_bitmapscan, enable_gathermerge, enable_group_by_reordering, enable_hashagg,
  enable_hashjoin, enable_incremental_sort, enable_indexonlyscan, enable_indexscan, enable_material, enable_memoize,
  enable_mergejoin, enable_nestloop, enable_parallel_append, enable_parallel_hash, enable_partition_pruning,
  enable_partitionwise_aggregate, enable_partitionwise_join, enable_presorted_aggregate, enable_seqscan, enable_sort,
  enable_tidscan, seq_page_cost, random_page_cost, cpu_tuple_cost, cpu_index_tuple_cost, cpu_operator_cost,
  parallel_tuple_cost, parallel_setup_cost, min_parallel_table_scan_size, min_parallel_index_scan_size,
  effective_cache_size, default_statistics_target, constraint_exclusion, cursor_tuple_fraction, from_collapse_limit,
  join_collapse_limit, geqo, geqo_threshold, plan_cache_mode, recursive_worktable_factor,
  work_mem, hash_mem_multiplier, maintenance_work_mem, autovacuum_work_mem, temp_buffers, logical_decoding_work_mem,
  vacuum_buffer_usage_limit, gin_pending_list_limit, gin_fuzzy_search_limit,
  max_parallel_workers, max_parallel_workers_per_gather, max_parallel_maintenance_workers, parallel_leader_participation,
  statement_timeout, lock_timeout, transaction_timeout, idle_in_transaction_session_timeout, idle_session_timeout,
  tcp_user_timeout, client_connection_check_interval, wal_sender_timeout,
  search_path, row_security, default_transaction_isolation, default_transaction_read_only,
  default_transaction_deferrable, default_table_access_method, default_toast_compression, default_text_search_config,
  check_function_bodies, quote_all_identifiers, transform_null_equals, synchronize_seqscans, bytea_output, xmlbinary,
  xmloption, extra_float_digits, datestyle, intervalstyle, timezone, timezone_abbreviations, client_min_messages,
  synchronous_commit, commit_siblings, wal_skip_threshold, checkpoint_timeout, checkpoint_completion_target,
  autovacuum, autovacuum_naptime, autovacuum_vacuum_threshold, autovacuum_vacuum_scale_factor,
  autovacuum_vacuum_insert_threshold, autovacuum_vacuum_insert_scale_factor, autovacuum_analyze_threshold,
  autovacuum_analyze_scale_factor, autovacuum_vacuum_cost_delay, autovacuum_vacuum_cost_limit,
  log_autovacuum_min_duration, vacuum_cost_delay, vacuum_cost_limit, vacuum_cost_page_hit, vacuum_cost_page_miss,
  vacuum_cost_page_dirty, vacuum_freeze_min_age, vacuum_freeze_table_age, vacuum_failsafe_age,
  vacuum_multixact_freeze_min_age, vacuum_multixact_freeze_table_age, vacuum_multixact_failsafe_age,
  log_checkpoints, log_recovery_conflict_waits, log_parameter_max_length_on_error, stats_fetch_consistency,
  max_pred_locks_per_relation, max_pred_locks_per_page, local_preload_libraries,
  pg_stat_statements.save
  TO app WITH GRANT OPTION;

-- These count from the next restart.
GRANT ALTER SYSTEM ON PARAMETER
  max_locks_per_transaction, max_pred_locks_per_transaction, max_prepared_transactions, track_activity_query_size,
  track_commit_timestamp, autovacuum_max_workers, autovacuum_freeze_max_age, autovacuum_multixact_freeze_max_age,
  pg_stat_statements.max
  TO app WITH GRANT OPTION;
