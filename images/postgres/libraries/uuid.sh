# Sourced by libraries.sh: util-linux's libuuid, for contrib/uuid-ossp. No daemon and no thread-local state; random
# bytes are the kernel's.
build_uuid() {
    if begin_library util-linux; then
        mkdir "$out/objects" "$out/include/uuid"
        cd "$out/objects"
        set --
        for name in clear compare copy gen_uuid isnull pack parse predefined unpack unparse uuid_time; do
            set -- "$@" "$library_source/libuuid/src/$name.c"
        done
        for name in md5 randutils sha1; do
            set -- "$@" "$library_source/lib/$name.c"
        done
        logged compile_objects "-I$library_source/include -D_GNU_SOURCE -DHAVE_STDLIB_H -DHAVE_UNISTD_H -DHAVE_SYS_TIME_H \
-DHAVE_SYS_FILE_H -DHAVE_NANOSLEEP -DHAVE_USLEEP -DHAVE_GETRANDOM -DHAVE_REALLOCARRAY -D_PATH_LOCALSTATEDIR=\"/var\"" "$@"
        logged ar rcs "$out/lib/libuuid.a" ./*.o
        cp "$library_source/libuuid/src/uuid.h" "$out/include/uuid/"
        cd - > /dev/null
        finish
    fi
    add_library uuid
}
