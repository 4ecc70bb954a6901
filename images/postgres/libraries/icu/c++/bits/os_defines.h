// Stands for the GNU C library's part of the C++ library's configuration, of which musl needs only a name.
#pragma once

#include <features.h>

typedef struct __locale_struct *__locale_t;
