/* What the test programs share: checks that say what they saw, a scratch file, and the mode of faults to run in. */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <fcntl.h>

#include <mapwright.h>

#define PAGE 4096

#define CHECK(condition)                                                                               \
    do {                                                                                               \
        if (!(condition)) {                                                                            \
            fprintf(stderr, "%s:%d: not so: %s (last error %d: %s)\n", __FILE__, __LINE__, #condition, \
                    mapwright_last_error_code(), mapwright_last_error());                              \
            exit(1);                                                                                   \
        }                                                                                              \
    } while (0)

/* The call succeeds. */
#define OK(call)                                                                                                \
    do {                                                                                                        \
        long long returned_ = (long long)(call);                                                                \
        if (returned_ < 0) {                                                                                    \
            fprintf(stderr, "%s:%d: %s is %lld: %s\n", __FILE__, __LINE__, #call, returned_, mapwright_last_error()); \
            exit(1);                                                                                            \
        }                                                                                                       \
    } while (0)

/* The call fails with this code, and says something. */
#define FAILS(code, call)                                                                          \
    do {                                                                                           \
        long long returned_ = (long long)(call);                                                   \
        if (returned_ != (code) || mapwright_last_error_code() != (code) || !*mapwright_last_error()) { \
            fprintf(stderr, "%s:%d: %s is %lld and not %lld (last error %d: %s)\n", __FILE__, __LINE__, #call, \
                    returned_, (long long)(code), mapwright_last_error_code(), mapwright_last_error()); \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* A call that returns -1 or MAP_FAILED, and this errno. */
#define FAILS_ERRNO(number, call)                                                                    \
    do {                                                                                             \
        errno = 0;                                                                                   \
        long returned_ = (long)(call);                                                               \
        if (returned_ != -1 || errno != (number)) {                                                  \
            fprintf(stderr, "%s:%d: %s is %ld, errno %d and not %d: %s\n", __FILE__, __LINE__, #call, \
                    returned_, errno, (number), mapwright_last_error());                             \
            exit(1);                                                                                 \
        }                                                                                            \
    } while (0)

/* The byte that scratch files have at a place. */
static inline unsigned char byte_at(size_t at) { return (unsigned char)(at % 251 + at / PAGE); }

/* Makes a file with known bytes in the folder that the program is run in. */
static inline const char *make_file(const char *name, size_t length) {
    FILE *file = fopen(name, "wb");
    CHECK(file != NULL);
    for (size_t at = 0; at < length; at++) CHECK(putc(byte_at(at), file) != EOF);
    CHECK(fclose(file) == 0);
    return name;
}

/* Whether a file has these bytes at a place, by read(2). */
static inline int file_has(const char *name, size_t at, const void *bytes, size_t length) {
    char found[PAGE];
    int fd = open(name, O_RDONLY);
    CHECK(fd >= 0 && length <= sizeof found);
    ssize_t n = pread(fd, found, length, (off_t)at);
    close(fd);
    return n == (ssize_t)length && memcmp(found, bytes, length) == 0;
}

static inline long long file_length(const char *name) {
    struct stat status;
    CHECK(stat(name, &status) == 0);
    return status.st_size;
}

/* Options for a pager of their own; faults are served as the test says. */
static inline mapwright_options *make_options(uint64_t budget) {
    mapwright_pager *pager;
    mapwright_options *options;
    OK(mapwright_pager_new(budget, &pager));
    OK(mapwright_options_new(&options));
    OK(mapwright_options_set_pager(options, pager));
    OK(mapwright_pager_close(pager)); /* the options keep it */
    OK(mapwright_options_set_strategy(options, MAPWRIGHT_STRATEGY_PAGER));
    OK(mapwright_options_set_reserve(options, 64 << 20)); /* valgrind keeps books of every reserved byte */
    const char *mode = getenv("MAPWRIGHT_TEST_FAULTS");
    if (mode && strcmp(mode, "in-thread") == 0) OK(mapwright_options_set_faults(options, MAPWRIGHT_FAULTS_IN_THREAD));
    return options;
}

#endif
