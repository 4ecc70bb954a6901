/*
 * dlopen over the modules that are linked into the program: a table made by modules.sh tells their names and those
 * of the symbols they export. Takes the place of musl's, which for a static program refuses everything.
 *
 * The table holds distances, not pointers, so that it needs no relocation in every process that starts.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

/* A value at `field + *field`, both in bytes. */
#define AT(field) ((void *) ((uintptr_t) &(field) + (intptr_t) (field)))

struct symbol
{
	int32_t		name;
	int32_t		address;
};

struct module
{
	int32_t		name;
	int32_t		symbols;		/* sorted by name */
	int32_t		count;
};

extern const struct module __dormouse_modules[];
extern const int32_t __dormouse_module_count;

static char message[320];
static int	message_is_new;

static void *
refuse(const char *what, const char *name)
{
	snprintf(message, sizeof message, "%s: %s", what, name);
	message_is_new = 1;
	return NULL;
}

void *
dlopen(const char *path, int flags)
{
	const char *slash;
	const char *name;
	size_t		length;

	(void) flags;
	if (path == NULL)
		return refuse("the program itself cannot be opened as a module", "NULL");
	slash = strrchr(path, '/');
	name = slash != NULL ? slash + 1 : path;
	length = strlen(name);
	if (length > 3 && strcmp(name + length - 3, ".so") == 0)
		length -= 3;
	for (int32_t i = 0; i < __dormouse_module_count; i++)
	{
		const struct module *module = &__dormouse_modules[i];
		const char *candidate = AT(module->name);

		if (strlen(candidate) == length && memcmp(candidate, name, length) == 0)
			return (void *) module;
	}
	return refuse("this image has no such module", path);
}

void *
dlsym(void *handle, const char *name)
{
	const struct module *module = handle;
	const struct symbol *symbols = AT(module->symbols);
	int32_t		low = 0;
	int32_t		high = module->count;

	while (low < high)
	{
		int32_t		middle = low + (high - low) / 2;
		int			order = strcmp(name, AT(symbols[middle].name));

		if (order == 0)
			return AT(symbols[middle].address);
		if (order < 0)
			high = middle;
		else
			low = middle + 1;
	}
	return refuse("the module exports no such symbol", name);
}

int
dlclose(void *handle)
{
	(void) handle;
	return 0;
}

char *
dlerror(void)
{
	if (!message_is_new)
		return NULL;
	message_is_new = 0;
	return message;
}
