/* Included before libstemmer's utilities.c, whose accesses to a table snowball.sh replaces by these. */
#define among_string(w) ((const symbol *) ((const char *) &(w)->s + (long) (w)->s))
#define among_function(w) ((int (*)(struct SN_env *)) ((const char *) &(w)->function + (long) (w)->function))
