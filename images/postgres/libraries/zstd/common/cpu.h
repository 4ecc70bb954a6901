/*
 * No features beyond what the compiler was told: asking the CPU would leave the guest.
 *
 * In place of Zstandard's common/cpu.h. SPDX-License-Identifier: BSD-3-Clause
 */
#ifndef ZSTD_COMMON_CPU_H
#define ZSTD_COMMON_CPU_H

typedef int ZSTD_cpuid_t;

static inline ZSTD_cpuid_t ZSTD_cpuid(void) { return 0; }
static inline int ZSTD_cpuid_bmi1(ZSTD_cpuid_t cpu) { return cpu; }
static inline int ZSTD_cpuid_bmi2(ZSTD_cpuid_t cpu) { return cpu; }

#endif
