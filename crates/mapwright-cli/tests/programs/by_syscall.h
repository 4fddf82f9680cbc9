/* The calls of maps.c made by syscall(2), with their numbers. */
#include <fcntl.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define mmap(address, len, protection, flags, fd, offset) \
    ((void *)syscall(SYS_mmap, address, (size_t)(len), protection, flags, fd, (off_t)(offset)))
#define munmap(address, len) ((int)syscall(SYS_munmap, address, (size_t)(len)))
#define mprotect(address, len, protection) ((int)syscall(SYS_mprotect, address, (size_t)(len), protection))
#define mremap(address, len, new, ...) \
    ((void *)syscall(SYS_mremap, address, (size_t)(len), (size_t)(new), __VA_ARGS__, NULL))
#define madvise(address, len, advice) ((int)syscall(SYS_madvise, address, (size_t)(len), advice))
#define mincore(address, len, vector) ((int)syscall(SYS_mincore, address, (size_t)(len), vector))
#define mlock(address, len) ((int)syscall(SYS_mlock, address, (size_t)(len)))
#define munlock(address, len) ((int)syscall(SYS_munlock, address, (size_t)(len)))
#define open(path, ...) ((int)syscall(SYS_openat, AT_FDCWD, path, __VA_ARGS__, 0600))
#define close(fd) ((int)syscall(SYS_close, fd))
#define close_range(first, last, flags) ((int)syscall(SYS_close_range, first, last, flags))
#define fork() ((pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL))
