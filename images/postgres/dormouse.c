/*
 * Dormouse's own module, in every server process by shared_preload_libraries.
 *
 * The pooler checks passwords, from verifiers that it keeps itself, before it wakes a database. A password set by
 * SQL would land in pg_authid, where nobody looks: refuse it, and say where passwords are set. A superuser, whom no
 * tenant is, may: PostgreSQL's own tests do.
 */
#include "postgres.h"

#include "commands/user.h"
#include "fmgr.h"
#include "miscadmin.h"

PG_MODULE_MAGIC;

static check_password_hook_type next_check_password = NULL;

static void
check_password(const char *username, const char *shadow_pass, PasswordType password_type,
			   Datum validuntil_time, bool validuntil_null)
{
	if (next_check_password != NULL)
		next_check_password(username, shadow_pass, password_type, validuntil_time, validuntil_null);
	/* Who logged in, whatever role the session has taken since: a tenant is never the superuser. */
	if (superuser_arg(GetAuthenticatedUserId()))
		return;

	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("passwords are managed by Dormouse and cannot be set by SQL"),
			 errdetail("Dormouse checks the password of role \"%s\" before it wakes the database, "
					   "from a verifier that is not kept in the database.", username),
			 errhint("Set it with Dormouse's REST API (see /openapi.json there), "
					 "or leave PASSWORD out of the statement.")));
}

void		_PG_init(void);

void
_PG_init(void)
{
	next_check_password = check_password_hook;
	check_password_hook = check_password;
}
