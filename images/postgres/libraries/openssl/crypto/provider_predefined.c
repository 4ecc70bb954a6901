/*
 * The one provider of this libcrypto, in place of OpenSSL's default, legacy and base ones: the digests and ciphers
 * that contrib/pgcrypto knows, old ones too, always there and without a configuration file. Whatever else OpenSSL
 * could do is not referenced, so the linker leaves it out.
 *
 * In place of OpenSSL's crypto/provider_predefined.c. SPDX-License-Identifier: Apache-2.0
 */
#include <openssl/core.h>
#include <openssl/core_dispatch.h>
#include <openssl/core_names.h>
#include <openssl/params.h>

#include "provider_local.h"
#include "prov/implementations.h"
#include "prov/names.h"
#include "prov/provider_ctx.h"

#define ALGORITHM(names, functions) { names, "provider=default", functions }

static const OSSL_ALGORITHM digests[] = {
    ALGORITHM(PROV_NAMES_MD5, ossl_md5_functions),
    ALGORITHM(PROV_NAMES_RIPEMD_160, ossl_ripemd160_functions),
    ALGORITHM(PROV_NAMES_SHA1, ossl_sha1_functions),
    ALGORITHM(PROV_NAMES_SHA2_224, ossl_sha224_functions),
    ALGORITHM(PROV_NAMES_SHA2_256, ossl_sha256_functions),
    ALGORITHM(PROV_NAMES_SHA2_384, ossl_sha384_functions),
    ALGORITHM(PROV_NAMES_SHA2_512, ossl_sha512_functions),
    ALGORITHM(PROV_NAMES_SHA2_512_224, ossl_sha512_224_functions),
    ALGORITHM(PROV_NAMES_SHA2_512_256, ossl_sha512_256_functions),
    ALGORITHM(PROV_NAMES_SHA3_224, ossl_sha3_224_functions),
    ALGORITHM(PROV_NAMES_SHA3_256, ossl_sha3_256_functions),
    ALGORITHM(PROV_NAMES_SHA3_384, ossl_sha3_384_functions),
    ALGORITHM(PROV_NAMES_SHA3_512, ossl_sha3_512_functions),
    ALGORITHM(PROV_NAMES_BLAKE2S_256, ossl_blake2s256_functions),
    ALGORITHM(PROV_NAMES_BLAKE2B_512, ossl_blake2b512_functions),
    { NULL, NULL, NULL },
};

static const OSSL_ALGORITHM ciphers[] = {
    ALGORITHM(PROV_NAMES_AES_128_ECB, ossl_aes128ecb_functions),
    ALGORITHM(PROV_NAMES_AES_192_ECB, ossl_aes192ecb_functions),
    ALGORITHM(PROV_NAMES_AES_256_ECB, ossl_aes256ecb_functions),
    ALGORITHM(PROV_NAMES_AES_128_CBC, ossl_aes128cbc_functions),
    ALGORITHM(PROV_NAMES_AES_192_CBC, ossl_aes192cbc_functions),
    ALGORITHM(PROV_NAMES_AES_256_CBC, ossl_aes256cbc_functions),
    ALGORITHM(PROV_NAMES_AES_128_CFB, ossl_aes128cfb_functions),
    ALGORITHM(PROV_NAMES_AES_192_CFB, ossl_aes192cfb_functions),
    ALGORITHM(PROV_NAMES_AES_256_CFB, ossl_aes256cfb_functions),
    ALGORITHM(PROV_NAMES_BF_ECB, ossl_blowfish128ecb_functions),
    ALGORITHM(PROV_NAMES_BF_CBC, ossl_blowfish128cbc_functions),
    ALGORITHM(PROV_NAMES_BF_CFB, ossl_blowfish128cfb64_functions),
    ALGORITHM(PROV_NAMES_CAST5_ECB, ossl_cast5128ecb_functions),
    ALGORITHM(PROV_NAMES_CAST5_CBC, ossl_cast5128cbc_functions),
    ALGORITHM(PROV_NAMES_DES_ECB, ossl_des_ecb_functions),
    ALGORITHM(PROV_NAMES_DES_CBC, ossl_des_cbc_functions),
    ALGORITHM(PROV_NAMES_DES_EDE3_ECB, ossl_tdes_ede3_ecb_functions),
    ALGORITHM(PROV_NAMES_DES_EDE3_CBC, ossl_tdes_ede3_cbc_functions),
    { NULL, NULL, NULL },
};

static const OSSL_ALGORITHM *query(void *context, int operation, int *no_cache)
{
    (void)context;
    *no_cache = 0;
    switch (operation) {
    case OSSL_OP_DIGEST:
        return digests;
    case OSSL_OP_CIPHER:
        return ciphers;
    default:
        return NULL;
    }
}

static void teardown(void *context)
{
    ossl_prov_ctx_free(context);
}

static const OSSL_DISPATCH functions[] = {
    { OSSL_FUNC_PROVIDER_TEARDOWN, (void (*)(void))teardown },
    { OSSL_FUNC_PROVIDER_QUERY_OPERATION, (void (*)(void))query },
    OSSL_DISPATCH_END,
};

static OSSL_provider_init_fn init;

static int init(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *in, const OSSL_DISPATCH **out, void **context)
{
    OSSL_FUNC_core_get_libctx_fn *get_libctx = NULL;
    PROV_CTX *new;

    for (; in->function_id != 0; in++)
        if (in->function_id == OSSL_FUNC_CORE_GET_LIBCTX)
            get_libctx = OSSL_FUNC_core_get_libctx(in);
    if (get_libctx == NULL || (new = ossl_prov_ctx_new()) == NULL)
        return 0;
    ossl_prov_ctx_set0_libctx(new, (OSSL_LIB_CTX *)get_libctx(handle));
    ossl_prov_ctx_set0_handle(new, handle);
    *context = new;
    *out = functions;
    return 1;
}

const OSSL_PROVIDER_INFO ossl_predefined_providers[] = {
    { "default", NULL, init, NULL, 1 },
    { NULL, NULL, NULL, NULL, 0 },
};
