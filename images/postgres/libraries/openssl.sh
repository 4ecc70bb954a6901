# Sourced by libraries.sh: OpenSSL's libcrypto, for contrib/pgcrypto alone. openssl/ has what stands in place of
# OpenSSL's own files.
build_openssl() {
    switches="no-apps no-argon2 no-aria no-asm no-atexit no-autoerrinit no-autoload-config no-camellia no-chacha no-cmp \
no-cms no-comp no-ct no-dgram no-dh no-docs no-dsa no-dso no-ec no-engine no-err no-filenames no-gost no-http no-idea \
no-makedepend no-md4 no-mdc2 no-ml-dsa no-ml-kem no-module no-multiblock no-ocb no-ocsp no-pic no-poly1305 \
no-posix-io no-psk no-quic no-rc2 no-rc4 no-rdrand no-rfc3779 no-scrypt no-secure-memory no-seed no-shared \
no-siphash no-siv no-slh-dsa no-sm2 no-sm3 no-sm4 no-sock no-srp no-srtp no-sse2 no-stdio no-tests no-thread-pool \
no-threads no-ts no-ui-console no-whirlpool"
    if begin_library openssl "$switches" "$here/libraries/openssl"; then
        cp -r "$library_source" "$out/source"
        cp -r "$here/libraries/openssl/." "$out/source/"
        cd "$out/source"
        # shellcheck disable=SC2086 # a list of words
        logged ./Configure linux-x86_64 --prefix=/pg --openssldir=/pg/etc/ssl --with-rand-seed=none $switches \
            CC="$musl/bin/musl-gcc" CFLAGS="$library_cflags"
        logged make -j "$jobs" build_generated
        logged make -j "$jobs" libcrypto.a
        cp -r include/openssl "$out/include/"
        cp libcrypto.a "$out/lib/"
        cd - > /dev/null
        rm -rf "$out/source"
        finish
    fi
    add_library crypto
}
