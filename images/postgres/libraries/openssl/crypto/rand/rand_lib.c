/*
 * Every random byte of libcrypto is the kernel's, which reseeds after each restore. OpenSSL's own generator would
 * live in the process' memory, and a clone of a database would draw what its original draws. (The one caller is
 * contrib/pgcrypto's ElGamal encryption, by BN_rand; whatever else it needs it asks of pg_strong_random.)
 *
 * In place of OpenSSL's crypto/rand/rand_lib.c. SPDX-License-Identifier: Apache-2.0
 */
#include <errno.h>
#include <sys/random.h>

#include <openssl/rand.h>
#include "crypto/rand.h"

int RAND_bytes_ex(OSSL_LIB_CTX *context, unsigned char *buffer, size_t length, unsigned int strength)
{
    (void)context;
    (void)strength;
    while (length > 0) {
        ssize_t got = getrandom(buffer, length, 0);

        if (got < 0 && errno != EINTR)
            return 0;
        if (got > 0) {
            buffer += got;
            length -= got;
        }
    }
    return 1;
}

int RAND_priv_bytes_ex(OSSL_LIB_CTX *context, unsigned char *buffer, size_t length, unsigned int strength)
{
    return RAND_bytes_ex(context, buffer, length, strength);
}

int RAND_bytes(unsigned char *buffer, int length)
{
    return length >= 0 && RAND_bytes_ex(NULL, buffer, length, 0);
}

int RAND_priv_bytes(unsigned char *buffer, int length)
{
    return RAND_bytes(buffer, length);
}

int RAND_status(void)
{
    return 1;
}

/* What the rest of libcrypto calls about a generator's life. There is none. */

void RAND_add(const void *buffer, int length, double randomness)
{
    (void)buffer;
    (void)length;
    (void)randomness;
}

void *ossl_rand_ctx_new(OSSL_LIB_CTX *context)
{
    /* A context is not NULL, or making the library's own would fail. */
    return context;
}

void ossl_rand_ctx_free(void *context)
{
    (void)context;
}

void ossl_rand_cleanup_int(void)
{
}

void ossl_random_add_conf_module(void)
{
}

EVP_RAND_CTX *RAND_get0_private(OSSL_LIB_CTX *context)
{
    (void)context;
    return NULL;
}

EVP_RAND_CTX *ossl_rand_get0_seed_noncreating(OSSL_LIB_CTX *context)
{
    (void)context;
    return NULL;
}

int ossl_rand_check_random_provider_on_load(OSSL_LIB_CTX *context, OSSL_PROVIDER *provider)
{
    (void)context;
    (void)provider;
    return 1;
}

int ossl_rand_check_random_provider_on_unload(OSSL_LIB_CTX *context, OSSL_PROVIDER *provider)
{
    (void)context;
    (void)provider;
    return 1;
}
