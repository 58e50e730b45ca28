// Marks for inner loops that are compiled once for each instruction set.
#ifndef QPRUNER_WORKER_ENGINE_VECTOR_CLONES_H_
#define QPRUNER_WORKER_ENGINE_VECTOR_CLONES_H_

// One binary for any x86-64, yet AVX2 and AVX-512 where they are: the loader picks the clone. With
// the thread sanitizer what picks is instrumented, too, and runs before there is a sanitizer: it
// crashes.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define QPRUNER_VECTOR_CLONES \
  __attribute__((target_clones("arch=skylake-avx512", "avx2", "default")))
#else
#define QPRUNER_VECTOR_CLONES
#endif

// A clone can only be wide where all that it calls is inlined into it.
#define QPRUNER_INLINE inline __attribute__((always_inline))

#endif  // QPRUNER_WORKER_ENGINE_VECTOR_CLONES_H_
