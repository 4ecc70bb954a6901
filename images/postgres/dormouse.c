/*
 * Dormouse's own module, in every server process by shared_preload_libraries. What a tenant may do is said by grants
 * (template.sql) where PostgreSQL has one; here is what takes code:
 *
 * - That a password is set by SQL is told to the pooler, which then asks for it at logins.
 * - The owner of a database publishes all of its tables, or those of a schema.
 * - A setting that would end every new session is refused.
 * - Small files that each session begins with are kept in the guest's memory.
 * - Before the golden snapshot is taken, the catalogs are read once (images/builder/src/golden.rs).
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/relation.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/indexing.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_database.h"
#include "catalog/pg_description.h"
#include "catalog/pg_namespace.h"
#include "catalog/pg_publication.h"
#include "commands/user.h"
#include "fmgr.h"
#include "libpq/libpq.h"
#include "libpq/pqformat.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/bufmgr.h"
#include "storage/ipc.h"
#include "storage/smgr.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/guc_tables.h"
#include "utils/rel.h"
#include "utils/relcache.h"
#include "utils/syscache.h"
#include "utils/varlena.h"

PG_MODULE_MAGIC;

void		_PG_init(void);
PGDLLEXPORT void dormouse_warm(Datum argument);

static check_password_hook_type next_check_password = NULL;
static ProcessUtility_hook_type next_process_utility = NULL;
static GucStringCheckHook next_check_local_preload = NULL;
static GucStringCheckHook next_check_session_preload = NULL;
static char *warm_database;

/*
 * The pooler checks passwords before it speaks to the guest. Those set in SQL it asks the guest for, at every login, and
 * it has to know that there are any, since it wakes no database for a user that cannot have one. So the backend tells
 * it here, by a ParameterStatus in the stream to its client: the pooler notes it durably before it lets the client know
 * that the statement was carried out (docs/logins.md). A rollback makes it untrue, and does no harm.
 */
static void
announce_login(const char *role)
{
	StringInfoData message;

	if (whereToSendOutput != DestRemote)
		return;
	pq_beginmessage(&message, PqMsg_ParameterStatus);
	pq_sendstring(&message, "dormouse.password");
	/* Of one length: whether it is the owner's, whose password the service makes, or another role's. */
	pq_sendstring(&message, strcmp(role, "app") == 0 ? "app" : "any");
	pq_endmessage(&message);
	pq_flush();
}

static void
check_password(const char *username, const char *shadow_pass, PasswordType password_type,
			   Datum validuntil_time, bool validuntil_null)
{
	if (next_check_password != NULL)
		next_check_password(username, shadow_pass, password_type, validuntil_time, validuntil_null);
	announce_login(username);
	/* PostgreSQL's own tests do what follows. Who logged in counts, whatever role the session has taken since. */
	if (superuser_arg(GetAuthenticatedUserId()))
		return;

	if (whereToSendOutput != DestRemote)
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("passwords can only be set in the session of a client")));
	/* The pooler speaks SCRAM only. */
	if (password_type == PASSWORD_TYPE_MD5 ||
		(password_type == PASSWORD_TYPE_PLAINTEXT && Password_encryption == PASSWORD_TYPE_MD5))
		ereport(ERROR,
				(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
				 errmsg("MD5-encrypted passwords are not supported"),
				 errhint("Set password_encryption to \"scram-sha-256\", and give the password itself or its "
						 "SCRAM-SHA-256 verifier.")));
}

/*
 * Whose login a statement changes in another way than by a password: how long it is valid, and the name that it is asked
 * for by. NULL for nobody's. To be asked before the statement is carried out, as a role may be named by who is asking.
 */
static const char *
changed_login(Node *statement)
{
	if (IsA(statement, AlterRoleStmt))
	{
		AlterRoleStmt *alter = (AlterRoleStmt *) statement;
		ListCell   *cell;

		foreach(cell, alter->options)
			if (strcmp(lfirst_node(DefElem, cell)->defname, "validUntil") == 0)
				return get_rolespec_name(alter->role);
	}
	else if (IsA(statement, RenameStmt))
	{
		RenameStmt *rename = (RenameStmt *) statement;

		if (rename->renameType == OBJECT_ROLE)
			return pstrdup(rename->newname);
	}
	return NULL;
}

/*
 * PostgreSQL asks for a superuser to publish what is not the publisher's own: all tables, or all of a schema. In a
 * tenant's database its owner has that right.
 */
static bool
publishes_schemas_only(List *objects)
{
	ListCell   *cell;

	foreach(cell, objects)
	{
		PublicationObjSpec *object = lfirst_node(PublicationObjSpec, cell);

		/* With a table among them PostgreSQL's own rule stays: the superuser may publish any, the owner only hers. */
		if (object->pubobjtype != PUBLICATIONOBJ_TABLES_IN_SCHEMA &&
			object->pubobjtype != PUBLICATIONOBJ_TABLES_IN_CUR_SCHEMA)
			return false;
	}
	return objects != NIL;
}

static bool
owns_this_database(void)
{
	return object_ownercheck(DatabaseRelationId, MyDatabaseId, GetUserId());
}

/* Whether this statement is a CREATE or ALTER PUBLICATION to be carried out as superuser for the user. */
static bool
is_owner_s_publication(Node *statement)
{
	/* The kind of statement first: ROLLBACK of a failed transaction comes here too, when no catalog may be read. */
	if (!IsA(statement, CreatePublicationStmt) && !IsA(statement, AlterPublicationStmt))
		return false;
	if (superuser() || !owns_this_database())
		return false;
	if (IsA(statement, CreatePublicationStmt))
	{
		CreatePublicationStmt *create = (CreatePublicationStmt *) statement;

		return create->for_all_tables || publishes_schemas_only(create->pubobjects);
	}
	else
	{
		AlterPublicationStmt *alter = (AlterPublicationStmt *) statement;
		Oid			publication = GetSysCacheOid1(PUBLICATIONNAME, Anum_pg_publication_oid,
												  CStringGetDatum(alter->pubname));

		return publishes_schemas_only(alter->pubobjects) && OidIsValid(publication) &&
			object_ownercheck(PublicationRelationId, publication, GetUserId());
	}
}

/* ALTER PUBLICATION OWNER would ask the new owner to be superuser. */
static void
give_publication(const char *name, Oid owner)
{
	Relation	catalog;
	HeapTuple	tuple;
	Form_pg_publication form;

	CommandCounterIncrement();
	catalog = table_open(PublicationRelationId, RowExclusiveLock);
	tuple = SearchSysCacheCopy1(PUBLICATIONNAME, CStringGetDatum(name));
	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "publication \"%s\" is gone", name);
	form = (Form_pg_publication) GETSTRUCT(tuple);
	form->pubowner = owner;
	CatalogTupleUpdate(catalog, &tuple->t_self, tuple);
	changeDependencyOnOwner(PublicationRelationId, form->oid, owner);
	heap_freetuple(tuple);
	table_close(catalog, RowExclusiveLock);
}

static void
process_utility(PlannedStmt *planned, const char *query, bool read_only_tree, ProcessUtilityContext context,
				ParamListInfo parameters, QueryEnvironment *environment, DestReceiver *destination,
				QueryCompletion *completion)
{
	ProcessUtility_hook_type next = next_process_utility != NULL ? next_process_utility : standard_ProcessUtility;
	Oid			user;
	int			security;

	if (!is_owner_s_publication(planned->utilityStmt))
	{
		const char *login = changed_login(planned->utilityStmt);

		next(planned, query, read_only_tree, context, parameters, environment, destination, completion);
		/* Not before: whoever may not do it changes nothing. */
		if (login != NULL)
			announce_login(login);
		return;
	}
	/* An error's rollback restores the user. No code of a tenant's runs in between: event triggers are superusers'. */
	GetUserIdAndSecContext(&user, &security);
	SetUserIdAndSecContext(BOOTSTRAP_SUPERUSERID, security | SECURITY_LOCAL_USERID_CHANGE);
	next(planned, query, read_only_tree, context, parameters, environment, destination, completion);
	if (IsA(planned->utilityStmt, CreatePublicationStmt))
		give_publication(((CreatePublicationStmt *) planned->utilityStmt)->pubname, user);
	SetUserIdAndSecContext(user, security);
}

/*
 * A library that cannot be loaded ends the session that is told to, so a wrong name in ALTER DATABASE or ALTER ROLE
 * would lock everyone out: only what is in the image's folder for the setting.
 */
static bool
libraries_exist(const char *value, const char *folder)
{
	char	   *copy = pstrdup(value);
	List	   *names;
	ListCell   *cell;

	/* PostgreSQL's own tests name some that are nowhere. */
	if (IsTransactionState() && superuser())
		return true;
	if (!SplitDirectoriesString(copy, ',', &names))
	{
		GUC_check_errdetail("List syntax is invalid.");
		return false;
	}
	foreach(cell, names)
	{
		const char *name = lfirst(cell);
		char		path[MAXPGPATH];

		if (strncmp(name, folder, strlen(folder)) == 0)
			name += strlen(folder);
		snprintf(path, sizeof(path), "%s%s%s.so", pkglib_path, folder + strlen("$libdir"), name);
		if (strchr(name, '/') != NULL || access(path, F_OK) != 0)
		{
			GUC_check_errdetail("There is no library \"%s%s\" in this image.", folder, name);
			return false;
		}
	}
	return true;
}

static bool
check_local_preload(char **value, void **extra, GucSource source)
{
	return libraries_exist(*value, "$libdir/plugins/") &&
		(next_check_local_preload == NULL || next_check_local_preload(value, extra, source));
}

static bool
check_session_preload(char **value, void **extra, GucSource source)
{
	return libraries_exist(*value, "$libdir/") &&
		(next_check_session_preload == NULL || next_check_session_preload(value, extra, source));
}

/* Puts a check of ours before a setting's own. */
static void
check_setting(const char *name, GucStringCheckHook check, GucStringCheckHook *next)
{
	struct config_string *setting = (struct config_string *) find_option(name, false, false, ERROR);

	*next = setting->check_hook;
	setting->check_hook = check;
}

/* A hint: whatever is not there is read by who needs it. */
static void
keep_file(const char *path)
{
	int			file = open(path, O_RDONLY | PG_BINARY, 0);

	if (file < 0)
		return;
	posix_fadvise(file, 0, 0, POSIX_FADV_WILLNEED);
	close(file);
}

/*
 * At its end each process that was connected to a database asks the kernel to keep the files that it began with (fadvise of a whole file,
 * images/kernel/README.md): the next finds them in memory, over a sleep too. In the guest that all others are clones of, this is
 * where theirs come from; here they are renewed when one of them was written anew.
 */
static void
keep_first_files(int code, Datum argument)
{
	static const char *const of_server[] = {
		"PG_VERSION", "global/pg_control", "global/pg_filenode.map", "global/" RELCACHE_INIT_FILENAME,
	};
	static const char *const of_database[] = {"PG_VERSION", "pg_filenode.map", RELCACHE_INIT_FILENAME};
	char		path[MAXPGPATH];

	if (DatabasePath == NULL)
		return;
	for (int i = 0; i < lengthof(of_server); i++)
		keep_file(of_server[i]);
	keep_file(HbaFileName);
	keep_file(IdentFileName);
	for (int i = 0; i < lengthof(of_database); i++)
	{
		snprintf(path, sizeof(path), "%s/%s", DatabasePath, of_database[i]);
		keep_file(path);
	}
}

/*
 * What every session reads is read once, in the guest that all others are clones of: their memory is then the same where
 * it holds catalogs, so it is neither in their snapshots nor theirs alone while awake. Being connected to the database
 * also leaves the files that new sessions fill their relation caches from.
 */
void
dormouse_warm(Datum argument)
{
	Relation	classes;
	SysScanDesc scan;
	HeapTuple	tuple;

	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(warm_database, NULL, 0);
	StartTransactionCommand();
	classes = table_open(RelationRelationId, AccessShareLock);
	scan = systable_beginscan(classes, InvalidOid, false, NULL, 0, NULL);
	while (HeapTupleIsValid(tuple = systable_getnext(scan)))
	{
		Form_pg_class form = (Form_pg_class) GETSTRUCT(tuple);
		Relation	catalog;

		/* Comments on what is built in are large, and few look at them. */
		if (form->relnamespace != PG_CATALOG_NAMESPACE || form->oid == DescriptionRelationId ||
			form->oid == DescriptionObjIndexId ||
			(form->relkind != RELKIND_RELATION && form->relkind != RELKIND_INDEX))
			continue;
		catalog = relation_open(form->oid, AccessShareLock);
		for (ForkNumber fork = MAIN_FORKNUM; fork <= VISIBILITYMAP_FORKNUM; fork++)
		{
			if (!smgrexists(RelationGetSmgr(catalog), fork))
				continue;
			for (BlockNumber block = 0; block < RelationGetNumberOfBlocksInFork(catalog, fork); block++)
				ReleaseBuffer(ReadBufferExtended(catalog, fork, block, RBM_NORMAL, NULL));
		}
		relation_close(catalog, AccessShareLock);
	}
	systable_endscan(scan);
	table_close(classes, AccessShareLock);
	CommitTransactionCommand();
	elog(LOG, "catalogs of database \"%s\" read", warm_database);
	proc_exit(0);
}

static void
register_warming(void)
{
	BackgroundWorker worker = {
		.bgw_name = "dormouse warm",
		.bgw_type = "dormouse warm",
		.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION,
		.bgw_start_time = BgWorkerStart_RecoveryFinished,
		.bgw_restart_time = BGW_NEVER_RESTART,
		.bgw_library_name = "dormouse",
		.bgw_function_name = "dormouse_warm",
	};

	RegisterBackgroundWorker(&worker);
}

void
_PG_init(void)
{
	DefineCustomStringVariable("dormouse.warm", "Database whose catalogs are read when the server has started.", NULL,
							   &warm_database, "", PGC_POSTMASTER, GUC_NOT_IN_SAMPLE | GUC_DISALLOW_IN_FILE,
							   NULL, NULL, NULL);
	if (warm_database[0] != '\0')
		register_warming();
	next_check_password = check_password_hook;
	check_password_hook = check_password;
	next_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
	check_setting("local_preload_libraries", check_local_preload, &next_check_local_preload);
	check_setting("session_preload_libraries", check_session_preload, &next_check_session_preload);
	on_proc_exit(keep_first_files, 0);
}
