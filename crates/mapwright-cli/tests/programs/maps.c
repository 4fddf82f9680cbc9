/* A program that maps files as any may, and knows of no pager: the tests run it with `mapwright run` and without. It compares what it
 * sees in maps with what read(2) says, prints nothing that depends on addresses, and ends with 0 if all is as it should be. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef BY_SYSCALL
#include "by_syscall.h"
#endif

#include "file.h"

static unsigned char *map_part(int fd, int sharing, size_t from, size_t bytes) {
    unsigned char *map = mmap(NULL, bytes, PROT_READ, sharing, fd, from);
    CHECK(map != MAP_FAILED);
    return map;
}

/* Whether a part of a map shows what read(2) says of the file. */
static int shows(const unsigned char *map, int fd, size_t from, size_t bytes) {
    static __thread unsigned char buffer[64 * 1024];
    for (size_t done = 0; done < bytes;) {
        size_t part = bytes - done < sizeof buffer ? bytes - done : sizeof buffer;
        ssize_t got = pread(fd, buffer, part, from + done);
        if (got <= 0 || memcmp(buffer, map + done, got) != 0)
            return 0;
        done += got;
    }
    return 1;
}

static void whole(int sharing) {
    int fd = open_file(O_RDONLY);
    unsigned char *map = map_part(fd, sharing, 0, len);
    CHECK(shows(map, fd, 0, len));
    for (size_t at = 0; at < len; at += 37 * PAGE) /* in another order, when much is evicted */
        CHECK(shows(map + (len - 1 - at) / PAGE * PAGE, fd, (len - 1 - at) / PAGE * PAGE, 1));
    CHECK(munmap(map, len) == 0);
    errno = 0;
    unsigned char vector;
    CHECK(mincore(map, PAGE, &vector) == -1 && errno == ENOMEM);
}

static void window(void) {
    int fd = open_file(O_RDONLY);
    size_t from = MIB + PAGE, bytes = 2 * MIB + 5;
    unsigned char *map = map_part(fd, MAP_SHARED, from, bytes), *again = map_part(fd, MAP_PRIVATE, from, bytes);
    CHECK(close(fd) == 0);
    CHECK(map != again);
    fd = open_file(O_RDONLY);
    CHECK(shows(map, fd, from, bytes) && munmap(map, bytes) == 0);
    CHECK(shows(again, fd, from, bytes) && munmap(again, bytes) == 0);
}

static void end_of_file(void) {
    int fd = open_file(O_RDONLY);
    unsigned char *map = map_part(fd, MAP_SHARED, 0, len);
    for (size_t at = len; at % PAGE; at++)
        CHECK(map[at] == 0);
    CHECK(mmap(NULL, 0, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EINVAL);
    CHECK(mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 1) == MAP_FAILED && errno == EINVAL);
    CHECK(mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED && errno == EACCES);
    CHECK(munmap(map + 1, PAGE) == -1 && errno == EINVAL);
    CHECK(shows(map, fd, 0, len));
}

static void forked(void) {
    int fd = open_file(O_RDONLY), status;
    unsigned char *map = map_part(fd, MAP_PRIVATE, 0, len), *shared = map_part(fd, MAP_SHARED, MIB, 2 * MIB);
    CHECK(shows(map, fd, 0, len / 2));
    for (int round = 0; round < 3; round++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            CHECK(shows(map, fd, 0, len) && shows(shared, fd, MIB, 2 * MIB));
            unsigned char *own = map_part(fd, MAP_SHARED, 0, len); /* the child begins anew */
            CHECK(shows(own, fd, 0, len) && munmap(own, len) == 0);
            pid_t grandchild = fork();
            if (grandchild == 0) {
                CHECK(shows(map, fd, 0, len) && munmap(map, len) == 0);
                _exit(0);
            }
            CHECK(waitpid(grandchild, &status, 0) == grandchild && status == 0);
            CHECK(munmap(map, len) == 0);
            _exit(0);
        }
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        CHECK(shows(map, fd, 0, len) && shows(shared, fd, MIB, 2 * MIB));
    }
}

static void executed(char *self) {
    int fd = open_file(O_RDONLY);
    unsigned char *map = map_part(fd, MAP_SHARED, 0, len);
    CHECK(shows(map, fd, 0, MIB));
    char *arguments[] = {self, "whole", (char *)path, NULL};
    execv("/proc/self/exe", arguments);
    fail("execv");
}

static void partial(void) {
    int fd = open_file(O_RDONLY);
    unsigned char *map = map_part(fd, MAP_SHARED, 0, len), vector;
    CHECK(shows(map, fd, 0, MIB));
    CHECK(munmap(map + MIB, MIB) == 0);
    CHECK(mincore(map + MIB, PAGE, &vector) == -1 && errno == ENOMEM);
    CHECK(shows(map, fd, 0, MIB) && shows(map + 2 * MIB, fd, 2 * MIB, len - 2 * MIB));
    CHECK(munmap(map, len) == 0); /* with the hole */
    /* A range that begins before one map and ends after another. */
    unsigned char *space = mmap(NULL, 8 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(space != MAP_FAILED);
    unsigned char *first = map_part(fd, MAP_SHARED, 0, 2 * MIB), *second = map_part(fd, MAP_SHARED, 0, 2 * MIB);
    CHECK(shows(first, fd, 0, PAGE) && shows(second, fd, 0, PAGE));
    CHECK(mremap(first, 2 * MIB, 2 * MIB, MREMAP_MAYMOVE | MREMAP_FIXED, space) == space);
    CHECK(mremap(second, 2 * MIB, 2 * MIB, MREMAP_MAYMOVE | MREMAP_FIXED, space + 4 * MIB) == space + 4 * MIB);
    CHECK(shows(space, fd, 0, 2 * MIB) && shows(space + 4 * MIB, fd, 0, 2 * MIB));
    CHECK(munmap(space, 8 * MIB) == 0);
}

static void protect(void) {
    int fd = open_file(O_RDONLY);
    unsigned char *copy = map_part(fd, MAP_PRIVATE, 0, len), *shared = map_part(fd, MAP_SHARED, 0, len);
    CHECK(shows(copy, fd, 0, MIB));
    unsigned char before = copy[2 * MIB];
    CHECK(mprotect(copy, len, PROT_READ | PROT_WRITE) == 0);
    memset(copy + 2 * MIB, before + 1, PAGE);
    CHECK(shared[2 * MIB] == before && shows(shared, fd, 0, len));
    CHECK(copy[2 * MIB] == (unsigned char)(before + 1) && shows(copy, fd, 0, 2 * MIB));
    unsigned char *only = map_part(fd, MAP_SHARED, 0, len);
    CHECK(mprotect(only, len, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
    CHECK(mprotect(shared, PAGE, PROT_NONE) == 0 && shows(shared + PAGE, fd, PAGE, len - PAGE));
    /* One that may be written by a mapping alone. */
    int writer = open(path, O_RDWR);
    unsigned char *writable = map_part(writer, MAP_SHARED, 0, len), *other = map_part(fd, MAP_SHARED, 0, len);
    CHECK(close(writer) == 0 && mprotect(writable, len, PROT_READ | PROT_WRITE) == 0);
    unsigned char *again = map_part(fd, MAP_PRIVATE, 0, len);
    CHECK(again[3 * MIB] == other[3 * MIB]);
    writable[3 * MIB] ^= 0xff;
    CHECK(again[3 * MIB] == writable[3 * MIB] && other[3 * MIB] == writable[3 * MIB] && shows(other, fd, 0, len));
}

/* In one of several ways, after all of it was seen. */
static void written(char way) {
    int fd = open_file(O_RDONLY);
    unsigned char bytes[3 * PAGE], *map = map_part(fd, MAP_SHARED, 0, len);
    memset(bytes, 'a', sizeof bytes);
    struct iovec part = {bytes, 7};
    CHECK(shows(map, fd, 0, len) && shows(map, fd, 0, MIB));
    int writer = open(path, O_RDWR), second = dup(writer);
    CHECK(writer >= 0 && second >= 0);
    switch (way) {
    case '0': CHECK(pwrite(writer, bytes, sizeof bytes, 100) == sizeof bytes); break;
    case '1': CHECK(lseek(second, MIB, SEEK_SET) == MIB && write(second, bytes, 1) == 1); break;
    case '2': CHECK(pwritev(writer, &part, 1, 2 * MIB) == 7); break;
    case '3': CHECK(fallocate(writer, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 3 * MIB, MIB) == 0 && map[3 * MIB] == 0); break;
    case '4': CHECK(pwrite(writer, "end", 3, len) == 3 && memcmp(map + len, "end", 3) == 0); break;
    case '5': CHECK(copy_file_range(fd, &(off_t){0}, writer, &(off_t){MIB}, PAGE, 0) == PAGE); break;
    case '6': CHECK(lseek(writer, 0, SEEK_SET) == 0 && sendfile(writer, fd, &(off_t){MIB}, PAGE) == PAGE); break;
    case '7': CHECK(syscall(SYS_pwrite64, writer, bytes, sizeof bytes, 100) == sizeof bytes); break;
    default: fail("the way");
    }
    CHECK(shows(map, fd, 0, len));
    unsigned char *again = map_part(fd, MAP_SHARED, 0, len);
    CHECK(shows(again, fd, 0, len) && pwrite(writer, bytes, 1, 5 * MIB) == 1 && shows(again, fd, 0, len));
    CHECK(munmap(map, len) == 0 && shows(again, fd, 0, len));
    CHECK(close(writer) == 0 && pwrite(second, bytes, 1, 6 * MIB) == 1 && shows(again, fd, 0, len));
}

/* When nobody can write it any more, it is served anew. */
static void again(void) {
    int fd = open_file(O_RDONLY);
    for (int round = 0; round < 20; round++) {
        unsigned char *map = map_part(fd, MAP_SHARED, 0, len), byte = round;
        CHECK(shows(map, fd, 0, len));
        int writer = open(path, O_WRONLY);
        CHECK(writer >= 0 && pwrite(writer, &byte, 1, round * PAGE) == 1);
        CHECK(map[round * PAGE] == byte && shows(map, fd, 0, len) && close(writer) == 0);
        if (round % 2)
            CHECK(munmap(map, len) == 0);
    }
}

/* Written by a program that knows of nothing, at a place that was seen and at one that was not. */
static void changed(void) {
    int fd = open_file(O_RDONLY);
    unsigned char *map = map_part(fd, MAP_SHARED, 0, len), before = map[0];
    CHECK(shows(map + 3 * MIB, fd, 3 * MIB, MIB));
    char command[4096];
    const char *format = "export LD_PRELOAD=; for at in %d %d; do"
        " printf changed | dd of='%s' bs=1 seek=$at conv=notrunc status=none; done";
    snprintf(command, sizeof command, format, 3 * MIB + 5, 5 * MIB, path);
    CHECK(system(command) == 0);
    CHECK(memcmp(map + 3 * MIB + 5, "changed", 7) == 0);
    CHECK(memcmp(map + 5 * MIB, "changed", 7) == 0 && map[0] == before);
    CHECK(shows(map, fd, 0, len));
}

/* Waits for somebody at the other end of a pipe. */
static void await(int from) {
    char byte;
    CHECK(read(from, &byte, 1) == 1);
}

static void let_go(int to) {
    CHECK(write(to, "x", 1) == 1);
}

/* Several processes have seen a page that another one writes: each sees the new one at once, one that was stopped meanwhile too. */
static void processes(void) {
    enum { COUNT = 4 };
    int ready[2], go[COUNT][2], status;
    pid_t children[COUNT];
    int fd = open_file(O_RDONLY);
    alarm(60); /* one that fails says nothing more */
    CHECK(pipe(ready) == 0);
    for (int index = 0; index < COUNT; index++) {
        CHECK(pipe(go[index]) == 0);
        children[index] = fork();
        CHECK(children[index] >= 0);
        if (children[index] == 0) {
            CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
            unsigned char *map = map_part(fd, index % 2 ? MAP_SHARED : MAP_PRIVATE, 0, len);
            for (int round = 0; round < 5; round++) {
                CHECK(shows(map, fd, 0, len) && shows(map, fd, 0, MIB));
                let_go(ready[1]);
                if (index == 0)
                    raise(SIGSTOP);
                else
                    await(go[index][0]);
                CHECK(map[7] == 'A' + round && map[5 * MIB] == 'A' + round && map[7 * MIB] == 'A' + round);
                CHECK(shows(map, fd, 0, len));
                CHECK(munmap(map, len) == 0);
                map = map_part(fd, MAP_SHARED, 0, len);
            }
            _exit(0);
        }
    }
    for (int round = 0; round < 5; round++) {
        char byte = 'A' + round;
        for (int index = 0; index < COUNT; index++)
            await(ready[0]);
        CHECK(waitpid(children[0], &status, WUNTRACED) == children[0] && WIFSTOPPED(status));
        int writer = open(path, O_WRONLY);
        CHECK(writer >= 0 && pwrite(writer, &byte, 1, 7) == 1 && pwrite(writer, &byte, 1, 5 * MIB) == 1);
        CHECK(pwrite(writer, &byte, 1, 7 * MIB) == 1);
        for (int index = 1; index < COUNT; index++)
            let_go(go[index][1]);
        CHECK(kill(children[0], SIGCONT) == 0 && close(writer) == 0);
    }
    for (int index = 0; index < COUNT; index++)
        CHECK(waitpid(children[index], &status, 0) == children[index] && status == 0);
}

/* A child has inherited a descriptor for writing, and writes by it when the parent has closed its own. */
static void inherited(void) {
    int writer = open_file(O_RDWR), fd = open(path, O_RDONLY), go[2], done[2], status;
    CHECK(pipe(go) == 0 && pipe(done) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        await(go[0]);
        CHECK(pwrite(writer, "by a child", 10, 2 * MIB) == 10);
        let_go(done[1]);
        _exit(0);
    }
    CHECK(close(writer) == 0);
    unsigned char *map = map_part(fd, MAP_SHARED, 0, len);
    CHECK(shows(map, fd, 0, len));
    let_go(go[1]);
    await(done[0]);
    CHECK(memcmp(map + 2 * MIB, "by a child", 10) == 0);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* Who does not want to wait for a lease may be told to come again. */
static void without_waiting(void) {
    int fd = open_file(O_RDONLY), writer = -1;
    unsigned char *map = map_part(fd, MAP_SHARED, 0, len);
    CHECK(shows(map, fd, 0, len));
    for (int tries = 0; tries < 5000 && writer < 0; tries++) {
        writer = open(path, O_WRONLY | O_NONBLOCK);
        CHECK(writer >= 0 || errno == EWOULDBLOCK);
        if (writer < 0)
            usleep(1000);
    }
    CHECK(writer >= 0 && pwrite(writer, "later", 5, MIB) == 5 && memcmp(map + MIB, "later", 5) == 0);
}

static void streamed(void) {
    int fd = open_file(O_RDONLY);
    unsigned char *map = map_part(fd, MAP_SHARED, 0, len);
    CHECK(shows(map, fd, 0, len));
    FILE *stream = fopen(path, "r+");
    CHECK(stream && fseek(stream, MIB, SEEK_SET) == 0 && fputs("by a stream", stream) >= 0 && fflush(stream) == 0);
    CHECK(memcmp(map + MIB, "by a stream", 11) == 0);
    unsigned char *again = map_part(fd, MAP_SHARED, 0, len);
    CHECK(again[2 * MIB] == map[2 * MIB]);
    CHECK(fseek(stream, 2 * MIB, SEEK_SET) == 0 && fputs("and again", stream) >= 0 && fflush(stream) == 0);
    CHECK(memcmp(again + 2 * MIB, "and again", 9) == 0 && shows(again, fd, 0, len));
    fclose(stream);
}

static sigjmp_buf back;

static void on_bus(int signal) {
    (void)signal;
    siglongjmp(back, 1);
}

static void truncated(void) {
    int reader = open_file(O_RDONLY);
    unsigned char *map = map_part(reader, MAP_SHARED, 0, len);
    CHECK(shows(map, reader, 0, len));
    signal(SIGBUS, on_bus);
    CHECK(truncate(path, 6 * MIB) == 0); /* which opens nothing */
    if (sigsetjmp(back, 1) == 0) {
        volatile unsigned char byte = map[7 * MIB];
        (void)byte;
        fail("a touch past the end of the file");
    }
    CHECK(shows(map, reader, 0, 6 * MIB));
    int fd = open(path, O_RDWR);
    CHECK(fd >= 0 && ftruncate(fd, 2 * MIB) == 0);
    CHECK(shows(map, fd, 0, 2 * MIB));
    if (sigsetjmp(back, 1) == 0) {
        volatile unsigned char byte = map[4 * MIB];
        (void)byte;
        fail("a touch past the end of the file");
    }
    CHECK(ftruncate(fd, len) == 0 && map[4 * MIB] == 0);
    CHECK(truncate(path, MIB) == 0 && shows(map, fd, 0, MIB));
}

/* Opens the file for reading, and cuts it by that. */
static int open_and_cut(int way) {
    uint64_t how[3] = {O_RDONLY | O_TRUNC | O_CLOEXEC, 0, 0};
    switch (way) {
    case 0: return open(path, O_RDONLY | O_TRUNC);
    case 1: return openat(AT_FDCWD, path, O_RDONLY | O_TRUNC);
    case 2: return open64(path, O_RDONLY | O_TRUNC | O_CREAT, 0600);
    case 3: return openat64(AT_FDCWD, path, O_RDONLY | O_TRUNC | O_NOFOLLOW);
    case 4: return syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_TRUNC);
    case 5: return syscall(SYS_openat2, AT_FDCWD, path, how, sizeof how);
#ifdef SYS_open
    case 6: return syscall(SYS_open, path, O_RDONLY | O_TRUNC);
#endif
    default: return -2;
    }
}

/* What is opened for reading and cut by that is gone at once, here and in another process. */
static void cut(void) {
    int go[2], done[2], status;
    int fd = open_file(O_RDONLY);
    unsigned char *all = malloc(len);
    CHECK(all && pread(fd, all, len, 0) == (ssize_t)len && pipe(go) == 0 && pipe(done) == 0);
    signal(SIGBUS, on_bus);
    for (int way = 0; way < 7; way++) {
        pid_t child = fork();
        CHECK(child >= 0);
        unsigned char *map = map_part(fd, MAP_SHARED, 0, len);
        CHECK(shows(map, fd, 0, len) && shows(map, fd, 0, MIB));
        if (child == 0) {
            let_go(done[1]);
            await(go[0]);
        } else {
            await(done[0]);
            int other = open_and_cut(way);
            if (other == -2 && way == 6)
                other = open_and_cut(0);
            struct stat stat;
            CHECK(other >= 0 && fstat(other, &stat) == 0 && stat.st_size == 0);
            CHECK(write(other, "x", 1) == -1 && errno == EBADF && close(other) == 0);
            let_go(go[1]);
        }
        if (sigsetjmp(back, 1) == 0) {
            volatile unsigned char byte = map[0];
            (void)byte;
            fail("a touch past the end of the file");
        }
        CHECK(munmap(map, len) == 0);
        if (child == 0)
            _exit(0);
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        int writer = open(path, O_WRONLY);
        CHECK(writer >= 0 && pwrite(writer, all, len, 0) == (ssize_t)len && close(writer) == 0);
    }
    /* Ends that cut nothing. */
    CHECK(open(path, O_RDONLY | O_TRUNC | O_CREAT | O_EXCL, 0600) == -1 && errno == EEXIST);
    CHECK(open("none", O_RDONLY | O_TRUNC) == -1 && errno == ENOENT);
    CHECK(open(".", O_RDONLY | O_TRUNC) == -1 && errno == EISDIR);
    CHECK(open((char *)1, O_RDONLY | O_TRUNC) == -1 && errno == EFAULT);
    CHECK(shows(all, fd, 0, len));
}

/* What is there is what was touched a moment ago, and no more than may be. */
static void resident(void) {
    int fd = open_file(O_RDONLY);
    unsigned char *map = map_part(fd, MAP_SHARED, 0, len);
    size_t pages = (len + PAGE - 1) / PAGE, there = 0;
    unsigned char *vector = malloc(pages), one = 0;
    CHECK(vector && mincore(map + 1, PAGE, vector) == -1 && errno == EINVAL);
    CHECK(mincore(map, len, NULL) == -1 && errno == EFAULT);
    for (size_t at = 0; at < len; at += 101 * PAGE) {
        for (int tries = 0; tries < 1000; tries++) { /* it may be evicted at any time */
            (void)*(volatile unsigned char *)(map + at);
            CHECK(mincore(map + at, 1, &one) == 0);
            if (one & 1)
                break;
        }
        CHECK(one & 1);
    }
    CHECK(shows(map, fd, 0, len) && mincore(map, len, vector) == 0);
    for (size_t page = 0; page < pages; page++)
        there += vector[page] & 1;
    if (getenv("MAPWRIGHT_RUN_SOCKET"))
        CHECK(there > 0 && there * PAGE <= 2 * MIB);
    CHECK(madvise(map, len, MADV_DONTNEED) == 0 && mincore(map, len, vector) == 0 && shows(map, fd, 0, len));
    free(vector);
}

extern pid_t _Fork(void) __attribute__((weak));

static struct { unsigned char *map; int fd; } parents;

static int in_clone(void *argument) {
    CHECK(argument == &parents && shows(parents.map, parents.fd, 0, len));
    unsigned char *own = map_part(parents.fd, MAP_SHARED, 0, len);
    CHECK(shows(own, parents.fd, 0, len) && munmap(own, len) == 0 && munmap(parents.map, len) == 0);
    return 0;
}

/* Children that were made otherwise than by fork(2). */
static void children(void) {
    static char stack[256 * 1024] __attribute__((aligned(16)));
    uint64_t how[8] = {[4] = SIGCHLD};
    int status;
    parents.fd = open_file(O_RDONLY);
    parents.map = map_part(parents.fd, MAP_PRIVATE, 0, len);
    CHECK(shows(parents.map, parents.fd, 0, len / 2));
    CHECK(syscall(SYS_clone3, NULL, 0) == -1 && (errno == EINVAL || errno == ENOSYS));
    for (int way = 0; way < 5; way++) {
        pid_t child = -1;
        switch (way) {
        case 0: child = syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL); break;
        case 1: child = syscall(SYS_clone3, how, sizeof how); break;
        case 2: child = _Fork ? _Fork() : fork(); break;
        case 3: child = clone(in_clone, stack + sizeof stack, SIGCHLD, &parents); break;
#ifdef SYS_fork
        case 4: child = syscall(SYS_fork); break;
#else
        case 4: child = fork(); break;
#endif
        }
        CHECK(child >= 0);
        if (child == 0 && way == 0)
            syscall(SYS_exit, in_clone(&parents)); /* of this thread alone */
        if (child == 0)
            _exit(in_clone(&parents));
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        CHECK(shows(parents.map, parents.fd, 0, len));
    }
}

/* System calls that are nobody's business get all of their arguments, and say what the kernel says. */
static void through(void) {
    int fd = open_file(O_RDONLY), copy = open(".", O_TMPFILE | O_RDWR, 0600);
    off_t from = MIB, to = 3;
    unsigned char bytes[PAGE], *map = map_part(fd, MAP_SHARED, 0, len);
    CHECK(shows(map, fd, 0, MIB));
    for (long number = 460; number < 530; number++) /* around the end of the table */
        if (number > 500)
            CHECK(syscall(number, 1, 2, 3, 4, 5, 6) == -1 && errno == ENOSYS);
    CHECK(syscall(-1L) == -1 && errno == ENOSYS && syscall(1L << 40) != -2);
    errno = 7;
    CHECK(syscall(SYS_getpid) == getpid() && errno == 7);
    CHECK(syscall(SYS_copy_file_range, fd, &from, copy, &to, (size_t)PAGE, 0u) == PAGE && from == MIB + PAGE && to == 3 + PAGE);
    CHECK(syscall(SYS_copy_file_range, fd, &from, copy, &to, (size_t)PAGE, 1u) == -1 && errno == EINVAL);
    CHECK(syscall(SYS_pread64, copy, bytes, sizeof bytes, (off_t)3) == PAGE && memcmp(bytes, map + MIB, PAGE) == 0);
    CHECK(syscall(SYS_close, -1) == -1 && errno == EBADF);
    CHECK(syscall(SYS_munmap, 1, PAGE) == -1 && errno == EINVAL);
    CHECK(syscall(SYS_mmap, NULL, 0, PROT_READ, MAP_SHARED, fd, 0) == -1 && errno == EINVAL);
    CHECK(syscall(SYS_dup3, fd, fd, 0) == -1 && errno == EINVAL);
    CHECK(syscall(SYS_openat2, AT_FDCWD, path, NULL, 0) == -1 && errno == EINVAL);
    CHECK(syscall(SYS_munmap, map, len) == 0 && syscall(SYS_mincore, map, PAGE, bytes) == -1 && errno == ENOMEM);
}

static void by_system_calls(void) {
    int fd = open_file(O_RDONLY), pipes[2];
    unsigned char *map = map_part(fd, MAP_SHARED, 0, len), bytes[PAGE];
    CHECK(pipe(pipes) == 0);
    for (size_t at = len / PAGE * PAGE - PAGE; at > 0; at -= at > 61 * PAGE ? 61 * PAGE : at) {
        CHECK(write(pipes[1], map + at, PAGE) == PAGE && read(pipes[0], bytes, PAGE) == PAGE);
        CHECK(shows(bytes, fd, at, PAGE));
    }
    int copy = open(".", O_TMPFILE | O_RDWR, 0600);
    CHECK(copy >= 0 && write(copy, map, len) == (ssize_t)len && shows(map, copy, 0, len));
}

static void replaced(void) {
    int fd = open_file(O_RDONLY);
    unsigned char *map = map_part(fd, MAP_SHARED, 0, len);
    CHECK(shows(map, fd, 0, MIB));
    CHECK(mmap(map + MIB, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == map + MIB);
    memset(map + MIB, 7, MIB);
    CHECK(shows(map, fd, 0, MIB) && shows(map + 2 * MIB, fd, 2 * MIB, len - 2 * MIB));
    CHECK(map[MIB] == 7 && map[2 * MIB - 1] == 7);
    unsigned char *other = map_part(fd, MAP_PRIVATE, 0, len);
    CHECK(mmap(other, len, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == other && shows(other, fd, 0, len));
    unsigned char *moved = map_part(fd, MAP_SHARED, 0, 4 * MIB);
    CHECK(shows(moved, fd, 0, PAGE));
    moved = mremap(moved, 4 * MIB, 5 * MIB, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED && shows(moved, fd, 0, 5 * MIB));
    CHECK(mlock(other, 2 * PAGE) == 0 && munlock(other, 2 * PAGE) == 0);
}

static void advised(void) {
    int fd = open_file(O_RDONLY);
    unsigned char *map = map_part(fd, MAP_SHARED, 0, len);
    int all[] = {MADV_RANDOM, MADV_WILLNEED, MADV_SEQUENTIAL, MADV_DONTNEED, MADV_NORMAL, MADV_HUGEPAGE, MADV_DOFORK};
    for (size_t index = 0; index < sizeof all / sizeof *all; index++) {
        int answer = madvise(map, len, all[index]);
        CHECK(answer == 0 || (all[index] == MADV_HUGEPAGE && errno == EINVAL));
        CHECK(shows(map, fd, 0, len));
    }
    map = map_part(fd, MAP_SHARED, 0, len);
    for (size_t at = 0; at + 8 * PAGE < len; at += 8 * PAGE) /* every other part */
        CHECK(madvise(map + at, 4 * PAGE, at % (16 * PAGE) ? MADV_RANDOM : MADV_WILLNEED) == 0);
    CHECK(shows(map, fd, 0, len));
    CHECK(madvise(map + 1, PAGE, MADV_RANDOM) == -1 && errno == EINVAL);
    unsigned char *more = map_part(fd, MAP_PRIVATE, 0, len);
    CHECK(posix_madvise(more, len, POSIX_MADV_RANDOM) == 0 && posix_madvise(more, len, POSIX_MADV_DONTNEED) == 0);
    CHECK(posix_madvise(more + 1, len, POSIX_MADV_RANDOM) == EINVAL && madvise(more, len, 12345) == -1 && errno == EINVAL);
    CHECK(msync(more, len, MS_SYNC) == 0 && shows(more, fd, 0, len));
}

static struct { unsigned char *map; int fd; int stop; size_t rounds; } work;

static void *reader(void *argument) {
    size_t seed = (size_t)argument;
    while (!__atomic_load_n(&work.stop, __ATOMIC_RELAXED)) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        size_t at = (seed >> 33) % (len / PAGE) * PAGE;
        CHECK(shows(work.map + at, work.fd, at, PAGE));
        __atomic_add_fetch(&work.rounds, 1, __ATOMIC_RELAXED);
    }
    return NULL;
}

/* Maps become the kernel's while other threads wait for pages of them. */
static void threads(void) {
    work.fd = open_file(O_RDONLY);
    for (int round = 0; round < 6; round++) {
        pthread_t all[4];
        work.map = map_part(work.fd, round % 2 ? MAP_SHARED : MAP_PRIVATE, 0, len);
        work.stop = 0, work.rounds = 0;
        for (size_t index = 0; index < 4; index++)
            CHECK(pthread_create(&all[index], NULL, reader, (void *)(index + round * 4)) == 0);
        while (__atomic_load_n(&work.rounds, __ATOMIC_RELAXED) < 200)
            usleep(100);
        if (round % 3 == 0)
            CHECK(mprotect(work.map + MIB, PAGE, PROT_READ) == 0);
        else if (round % 3 == 1)
            CHECK(munlock(work.map, PAGE) == 0);
        size_t then = __atomic_load_n(&work.rounds, __ATOMIC_RELAXED) + 200;
        while (__atomic_load_n(&work.rounds, __ATOMIC_RELAXED) < then)
            usleep(100);
        work.stop = 1;
        for (size_t index = 0; index < 4; index++)
            CHECK(pthread_join(all[index], NULL) == 0);
        CHECK(munmap(work.map, len) == 0);
    }
}

/* What a daemon does. */
static void close_all(void) {
    int fd = open_file(O_RDONLY);
    unsigned char *map = map_part(fd, MAP_SHARED, 0, len);
    CHECK(shows(map, fd, 0, 1));
    for (int other = 3; other < 5000; other++)
        close(other);
    close_range(3, ~0u, 0);
    fd = open_file(O_RDONLY);
    CHECK(fd == 3 && shows(map, fd, 0, len));
    unsigned char *again = map_part(fd, MAP_SHARED, 0, len);
    CHECK(shows(again, fd, 0, len) && munmap(map, len) == 0);
}

static int pipe_that_is_full[2];

static void *writer(void *argument) {
    static char bytes[MIB];
    ssize_t written = write(pipe_that_is_full[1], bytes, sizeof bytes);
    return written ? argument : argument;
}

/* A thread that waits in write(2) can be cancelled. */
static void cancelled(void) {
    pthread_t thread;
    void *result;
    CHECK(pipe(pipe_that_is_full) == 0 && pthread_create(&thread, NULL, writer, NULL) == 0);
    usleep(50000);
    CHECK(pthread_cancel(thread) == 0 && pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
}

static void on_term(int signal) {
    _exit(signal == SIGTERM ? 42 : 43);
}

static void wait_for_a_signal(void) {
    signal(SIGTERM, on_term);
    puts("ready");
    fflush(stdout);
    for (;;)
        pause();
}

/* Somebody writes while it waits for a line. */
static void standby(void) {
    int fd = open_file(O_RDONLY);
    unsigned char *map = map_part(fd, MAP_SHARED, 0, len);
    CHECK(shows(map, fd, 0, len) && shows(map, fd, 0, 2 * MIB));
    puts("ready");
    fflush(stdout);
    await(STDIN_FILENO);
    CHECK(memcmp(map + MIB, "meanwhile", 9) == 0 && shows(map, fd, 0, len));
}

static void *last_thread(void *argument) {
    usleep(100000);
    CHECK(shows(work.map, work.fd, 0, len));
    puts("right");
    return argument; /* and so the process ends */
}

/* The first thread ends before the last. */
static void last(void) {
    pthread_t thread;
    work.fd = open_file(O_RDONLY);
    work.map = map_part(work.fd, MAP_SHARED, 0, len);
    CHECK(shows(work.map, work.fd, 0, MIB) && pthread_create(&thread, NULL, last_thread, NULL) == 0);
    alarm(30);
    pthread_exit(NULL);
}

/* Goes on when its parent is gone, with threads that touch pages meanwhile. */
static void hold(void) {
    pthread_t thread;
    pid_t parent = getppid();
    work.fd = open_file(O_RDONLY);
    work.map = map_part(work.fd, MAP_SHARED, 0, len);
    CHECK(shows(work.map, work.fd, 0, len / 2));
    CHECK(pthread_create(&thread, NULL, reader, NULL) == 0);
    puts("half");
    fflush(stdout);
    while (getppid() == parent)
        usleep(1000);
    CHECK(shows(work.map, work.fd, 0, len));
    work.stop = 1;
    CHECK(pthread_join(thread, NULL) == 0);
    unsigned char *again = map_part(work.fd, MAP_PRIVATE, 0, len);
    CHECK(shows(again, work.fd, 0, len) && munmap(work.map, len) == 0);
}

/* Many processes, of which each has many maps: path is of the file, the environment says how many. */
static void many(void) {
    int processes = atoi(getenv("PROCESSES")), maps = atoi(getenv("MAPS")), ready[2], go[2], status;
    int fd = open_file(O_RDONLY);
    CHECK(pipe(ready) == 0 && pipe(go) == 0);
    for (int index = 0; index < processes; index++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0 && close(go[1]) == 0);
            unsigned char *all[maps];
            for (int map = 0; map < maps; map++) {
                all[map] = map_part(fd, map % 2 ? MAP_SHARED : MAP_PRIVATE, 0, len);
                size_t at = (index * 7 + map * 13) % (len / PAGE) * PAGE;
                CHECK(shows(all[map] + at, fd, at, PAGE));
            }
            let_go(ready[1]);
            char byte; /* all have theirs now */
            CHECK(read(go[0], &byte, 1) == 0);
            for (int map = 0; map < maps; map++) {
                size_t at = (index * 11 + map * 17) % (len / PAGE) * PAGE;
                CHECK(shows(all[map] + at, fd, at, PAGE));
                if (map % 3 == 0)
                    CHECK(munmap(all[map], len) == 0);
            }
            _exit(0);
        }
    }
    for (int index = 0; index < processes; index++)
        await(ready[0]);
    CHECK(close(go[1]) == 0);
    for (int index = 0; index < processes; index++)
        CHECK(wait(&status) > 0 && status == 0);
}

/* As many maps in one process as it may have served, and more. */
static void crowded(void) {
    int maps = atoi(getenv("MAPS"));
    int fd = open_file(O_RDONLY);
    unsigned char **all = malloc(maps * sizeof *all);
    for (int map = 0; map < maps; map++) {
        all[map] = map_part(fd, MAP_SHARED, 0, len);
        size_t at = map % (len / PAGE) * PAGE;
        CHECK(shows(all[map] + at, fd, at, 1));
    }
    CHECK(shows(all[0], fd, 0, MIB) && shows(all[maps - 1], fd, 0, MIB));
    for (int map = 0; map < maps; map += 2)
        CHECK(munmap(all[map], len) == 0);
    unsigned char *again = map_part(fd, MAP_SHARED, 0, len);
    CHECK(shows(again, fd, 0, MIB));
}

/* No descriptor is left, then there are some. */
static void few_descriptors(void) {
    struct rlimit limit = {40, 40};
    int fds[64], count = 0, fd = open_file(O_RDONLY);
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    while ((fds[count] = dup(fd)) >= 0)
        count++;
    CHECK(errno == EMFILE && count > 20);
    unsigned char *map = map_part(fd, MAP_SHARED, 0, len), bytes[PAGE];
    CHECK(pread(fd, bytes, PAGE, MIB) == PAGE && memcmp(bytes, map + MIB, PAGE) == 0 && shows(map, fd, 0, len));
    CHECK(open(path, O_RDONLY) == -1 && errno == EMFILE);
    CHECK(open(path, O_RDONLY | O_TRUNC) == -1 && errno == EMFILE);
    while (count > 0)
        CHECK(close(fds[--count]) == 0);
    unsigned char *again = map_part(fd, MAP_SHARED, 0, len);
    CHECK(shows(again, fd, 0, len) && munmap(again, len) == 0 && munmap(map, len) == 0);
}

/* There is address space for the program's own map, and for little else. */
static void little_space(void) {
    int fd = open_file(O_RDONLY);
    long pages = 0;
    for (int mebibytes = 24; mebibytes < 300; mebibytes += 23) {
        FILE *own = fopen("/proc/self/statm", "r");
        CHECK(own && fscanf(own, "%ld", &pages) == 1);
        fclose(own);
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            struct rlimit limit = {pages * PAGE + len + mebibytes * MIB, RLIM_INFINITY};
            CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
            int count = 0;
            unsigned char *all[64], *map;
            while (count < 64 && (map = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0)) != MAP_FAILED) {
                all[count++] = map;
                CHECK(shows(map, fd, 0, MIB));
            }
            CHECK(count > 0 && (count == 64 || errno == ENOMEM));
            while (count > 0) {
                count--;
                CHECK(shows(all[count] + MIB, fd, MIB, MIB) && munmap(all[count], len) == 0);
            }
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
}

int main(int count, char **arguments) {
    if (count < 3)
        return 2;
    const char *what = arguments[1];
    path = arguments[2];
#define DO(name, call) else if (strncmp(what, name, strlen(name)) == 0) call
    if (strcmp(what, "exit") == 0)
        return atoi(path);
    DO("kill", raise(atoi(path)));
    DO("wait", wait_for_a_signal());
    DO("whole", whole(MAP_SHARED));
    DO("private", whole(MAP_PRIVATE));
    DO("window", window());
    DO("end", end_of_file());
    DO("fork", forked());
    DO("exec", executed(arguments[0]));
    DO("partial", partial());
    DO("protect", protect());
    DO("write", written(what[5]));
    DO("again", again());
    DO("changed", changed());
    DO("processes", processes());
    DO("inherited", inherited());
    DO("without", without_waiting());
    DO("standby", standby());
    DO("stream", streamed());
    DO("truncate", truncated());
    DO("cut", cut());
    DO("resident", resident());
    DO("children", children());
    DO("through", through());
    DO("many", many());
    DO("last", last());
    DO("crowded", crowded());
    DO("descriptors", few_descriptors());
    DO("space", little_space());
    DO("calls", by_system_calls());
    DO("replace", replaced());
    DO("advise", advised());
    DO("threads", threads());
    DO("close", close_all());
    DO("cancel", cancelled());
    DO("hold", hold());
    else return 2;
    puts("right");
    return 0;
}
