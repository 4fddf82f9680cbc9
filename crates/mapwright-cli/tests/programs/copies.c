/* A program that maps a file privately and writes to what it has mapped, and knows of no pager: the tests run it with `mapwright run` and without.
 * It keeps a copy of what it should see, prints nothing that depends on addresses, and ends with 0 if all is as it should be. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#ifdef BY_SYSCALL
#include "by_syscall.h"
#endif

#include "file.h"

enum { THREADS = 4 };

static unsigned char *map_part(int fd, size_t from, size_t bytes) {
    unsigned char *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, from);
    CHECK(map != MAP_FAILED);
    return map;
}

static unsigned char *contents(int fd) {
    unsigned char *all = calloc(1, len + PAGE);
    CHECK(all && pread(fd, all, len, 0) == (ssize_t)len);
    return all;
}

/* The same change of a map and of what it should show; of a page in seven. */
static void change(unsigned char *map, unsigned char *model, size_t from, size_t bytes, unsigned seed) {
    for (size_t at = seed % 7 * PAGE; at + PAGE <= bytes; at += 7 * PAGE) {
        size_t place = from + at + seed * 131 % (PAGE - 8);
        for (size_t byte = 0; byte < 1 + seed % 8; byte++)
            map[place - from + byte] = model[place + byte] = model[place + byte] * 5 + seed + 1;
    }
}

static void is(const unsigned char *map, const unsigned char *model, size_t bytes) {
    for (size_t at = 0; at < bytes; at += PAGE)
        CHECK(memcmp(map + at, model + at, bytes - at < PAGE ? bytes - at : PAGE) == 0);
}

/* As a handler of file faults may: before and after the first touch, by system calls too, and more than there is room for. */
static void stores(void) {
    int fd = open_file(O_RDONLY), other = open("/dev/zero", O_RDONLY);
    unsigned char *before = contents(fd), *model = contents(fd), *map = map_part(fd, 0, len), vector;
    for (unsigned round = 0; round < 6; round++) {
        change(map, model, 0, len, round);
        is(map, model, len);
        size_t at = (11 + round * 301) % (len / PAGE) * PAGE + 5;
        CHECK(read(other, map + at, 2 * PAGE) == 2 * PAGE); /* by the kernel, which copies too */
        memset(model + at, 0, 2 * PAGE);
        CHECK(pread(fd, map + at, 9, at) == 9 && memcpy(model + at, before + at, 9));
    }
    for (size_t page = len / PAGE; page-- > 0;) /* in another order */
        CHECK(memcmp(map + page * PAGE, model + page * PAGE, PAGE) == 0);
    for (size_t at = len; at % PAGE; at++) { /* behind the end of the file */
        CHECK(map[at] == 0);
        map[at] = at;
        model[at] = at;
    }
    is(map, model, len + PAGE - len % PAGE);
    unsigned char *second = map_part(fd, 0, len), *third = map_part(fd, MIB + PAGE, 2 * MIB);
    is(second, before, len);
    change(third, before, MIB + PAGE, 2 * MIB, 3);
    is(third, before + MIB + PAGE, 2 * MIB);
    is(map, model, len);
    CHECK(msync(map, len, MS_SYNC) == 0 && posix_madvise(map, len, POSIX_MADV_WILLNEED) == 0);
    CHECK(mincore(map, PAGE, &vector) == 0);
    CHECK(munmap(map, len) == 0 && mincore(map, PAGE, &vector) == -1 && errno == ENOMEM);
    CHECK(munmap(second, len) == 0 && munmap(third, 2 * MIB) == 0);
}

static struct { unsigned char *map, *model; int fd, stop; size_t rounds; uint64_t counts[THREADS]; } work;

/* Counts in pages of its own, between which it reads others. */
static void *counter(void *argument) {
    size_t own = (size_t)argument, pages = len / PAGE - 1, seed = own;
    uint64_t count = 0;
    while (!__atomic_load_n(&work.stop, __ATOMIC_RELAXED)) {
        count++;
        for (size_t page = own; page < pages; page += 8) {
            volatile uint64_t *place = (volatile uint64_t *)(work.map + page * PAGE + 16);
            CHECK(*place == count - 1);
            *place = count;
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            size_t at = (seed >> 33) % pages / 8 * 8 * PAGE + 5 * PAGE; /* nobody's */
            if (at < pages * PAGE)
                CHECK(memcmp(work.map + at + 100, work.model + at + 100, 50) == 0);
            __atomic_add_fetch(&work.rounds, 1, __ATOMIC_RELAXED);
        }
    }
    work.counts[own] = count;
    return NULL;
}

static void wait_for_rounds(size_t more) {
    size_t until = __atomic_load_n(&work.rounds, __ATOMIC_RELAXED) + more;
    while (__atomic_load_n(&work.rounds, __ATOMIC_RELAXED) < until)
        usleep(100);
}

static void count_while(void (*something)(void)) {
    pthread_t all[THREADS];
    work.stop = 0, work.rounds = 0;
    for (size_t page = 0; page < len / PAGE - 1; page++)
        if (page % 8 < THREADS)
            memset(work.map + page * PAGE + 16, 0, 8);
    for (size_t index = 0; index < THREADS; index++)
        CHECK(pthread_create(&all[index], NULL, counter, (void *)index) == 0);
    wait_for_rounds(2000);
    something();
    wait_for_rounds(2000);
    work.stop = 1;
    for (size_t index = 0; index < THREADS; index++) {
        CHECK(pthread_join(all[index], NULL) == 0);
        for (size_t page = index; page < len / PAGE - 1; page += 8)
            CHECK(*(uint64_t *)(work.map + page * PAGE + 16) == work.counts[index]);
    }
}

static void write_the_file(void) {
    int writer = open(path, O_WRONLY);
    CHECK(writer >= 0 && pwrite(writer, "written", 7, 5 * PAGE) == 7 && pwrite(writer, "written", 7, 16) == 7);
    /* What was not changed in the map is what the file holds. */
    CHECK(memcmp(work.map + 5 * PAGE, "written", 7) == 0 && close(writer) == 0);
}

static void protect_a_page(void) {
    CHECK(mprotect(work.map + 7 * PAGE, PAGE, PROT_READ) == 0);
}

static void unmap_a_page(void) {
    unsigned char vector;
    CHECK(munmap(work.map + 7 * PAGE, PAGE) == 0 && mincore(work.map + 7 * PAGE, PAGE, &vector) == -1 && errno == ENOMEM);
}

static void make_children(void) {
    int status;
    for (int round = 0; round < 3; round++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) { /* it has the counts of one moment, and may change them */
            for (size_t index = 0; index < THREADS; index++) {
                uint64_t first = *(uint64_t *)(work.map + index * PAGE + 16);
                for (size_t page = index; page < len / PAGE - 1; page += 8) {
                    uint64_t *place = (uint64_t *)(work.map + page * PAGE + 16);
                    CHECK(*place == first || *place + 1 == first);
                    *place = 12345678;
                }
            }
            _exit(0);
        }
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
}

static void counted(void (*something)(void)) {
    work.fd = open_file(O_RDONLY);
    for (int round = 0; round < 4; round++) {
        work.model = contents(work.fd);
        work.map = map_part(work.fd, 0, len);
        count_while(something);
        CHECK(munmap(work.map, len) == 0);
        free(work.model);
    }
}

extern pid_t _Fork(void) __attribute__((weak));

static struct { unsigned char *map, *model; } parents;

static int in_child(void *argument) {
    CHECK(argument == &parents);
    is(parents.map, parents.model, len);
    change(parents.map, parents.model, 0, len, 5);
    is(parents.map, parents.model, len);
    return 0;
}

/* A child has what its parent has changed, and neither sees what the other changes later. */
static void forked(void) {
    static char stack[256 * 1024] __attribute__((aligned(16)));
    uint64_t how[8] = {[4] = SIGCHLD};
    int status, fd = open_file(O_RDONLY);
    for (int way = 0; way < 8; way++) {
        pid_t child = -1;
        parents.map = map_part(fd, 0, len), parents.model = contents(fd);
        change(parents.map, parents.model, 0, len, way);
        switch (way) {
        case 0: child = syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL); break;
        case 1: child = syscall(SYS_clone3, how, sizeof how); break;
        case 2: child = _Fork ? _Fork() : fork(); break;
        case 3: child = clone(in_child, stack + sizeof stack, SIGCHLD, &parents); break;
#ifdef SYS_fork
        case 4: child = syscall(SYS_fork); break;
#else
        case 4: child = fork(); break;
#endif
        case 7: child = vfork(); break;
        default: child = fork();
        }
        CHECK(child >= 0);
        if (child == 0 && way == 7)
            _exit(0); /* in the parent's memory, whose map stays what it is */
        if (child == 0)
            _exit(in_child(&parents));
        change(parents.map, parents.model, 0, len, way + 1);
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        is(parents.map, parents.model, len);
        change(parents.map, parents.model, 0, len, way + 2);
        is(parents.map, parents.model, len);
        if (way % 2)
            CHECK(munmap(parents.map, len) == 0);
        free(parents.model);
    }
}

static unsigned char *volatile published;

/* Maps, writes and unmaps, over and over. */
static void *mapper(void *argument) {
    while (!__atomic_load_n(&work.stop, __ATOMIC_RELAXED)) {
        unsigned char *map = map_part(work.fd, MIB, MIB + PAGE);
        map[3 * PAGE] = 0xa5;
        __atomic_store_n(&published, map, __ATOMIC_SEQ_CST);
        map[4 * PAGE] = map[3 * PAGE];
        sched_yield();
        CHECK(map[4 * PAGE] == 0xa5);
        __atomic_store_n(&published, NULL, __ATOMIC_SEQ_CST);
        CHECK(munmap(map, MIB + PAGE) == 0);
        __atomic_add_fetch(&work.rounds, 1, __ATOMIC_RELAXED);
    }
    return argument;
}

/* Children are made while another thread maps: what a child can see of that is whole. */
static void forked_meanwhile(void) {
    pthread_t thread;
    int status;
    work.fd = open_file(O_RDONLY);
    CHECK(pthread_create(&thread, NULL, mapper, NULL) == 0);
    for (int round = 0; round < 60 || work.rounds < 60; round++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            unsigned char *map = published;
            CHECK(map == NULL || map[3 * PAGE] == 0xa5);
            _exit(0);
        }
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
    work.stop = 1;
    CHECK(pthread_join(thread, NULL) == 0);
}

enum { FLUSHED = 200 * 1024 };

static int pipe_that_is_full[2], prepared;

/* Holds a lock of the C library's that fork(2) takes after it has called all that want to be called before. */
static void *flusher(void *argument) {
    static char buffer[2 * FLUSHED];
    FILE *stream = fdopen(pipe_that_is_full[1], "w");
    CHECK(stream && setvbuf(stream, buffer, _IOFBF, sizeof buffer) == 0);
    for (int byte = 0; byte < FLUSHED; byte++)
        CHECK(fputc('x', stream) == 'x');
    CHECK(fflush(NULL) == 0);
    return argument;
}

static void is_prepared(void) {
    __atomic_store_n(&prepared, 1, __ATOMIC_SEQ_CST);
}

static void *forker(void *argument) {
    int status;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0)
        _exit(!published || published[3 * PAGE] != 0xa5 || published[4 * PAGE] != work.model[4 * PAGE]);
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    return argument;
}

/* A map is made and written when a child is as good as made. */
static void forked_late(void) {
    pthread_t threads[2];
    char bytes[4096];
    int fd = open_file(O_RDONLY), there = 0;
    work.model = contents(fd);
    unsigned char *first = map_part(fd, 0, len); /* so that there is something to be done before */
    first[0]++;
    CHECK(pipe(pipe_that_is_full) == 0 && pthread_atfork(is_prepared, NULL, NULL) == 0);
    CHECK(pthread_create(&threads[0], NULL, flusher, NULL) == 0);
    while (there < 65536) {
        usleep(1000);
        CHECK(ioctl(pipe_that_is_full[0], FIONREAD, &there) == 0);
    }
    CHECK(pthread_create(&threads[1], NULL, forker, NULL) == 0);
    while (!__atomic_load_n(&prepared, __ATOMIC_SEQ_CST))
        usleep(1000);
    usleep(200000);
    unsigned char *map = map_part(fd, 0, len);
    map[3 * PAGE] = 0xa5;
    __atomic_store_n(&published, map, __ATOMIC_SEQ_CST);
    for (int drained = 0; drained < FLUSHED;) {
        ssize_t got = read(pipe_that_is_full[0], bytes, sizeof bytes);
        CHECK(got > 0);
        drained += got;
    }
    CHECK(pthread_join(threads[0], NULL) == 0 && pthread_join(threads[1], NULL) == 0);
    CHECK(map[3 * PAGE] == 0xa5 && first[0] == (unsigned char)(work.model[0] + 1));
}

static void *protector(void *argument) {
    CHECK(mprotect(work.map + 7 * PAGE, PAGE, PROT_READ) == 0);
    __atomic_store_n(&work.stop, 1, __ATOMIC_SEQ_CST);
    return argument;
}

/* Who serves the map is stopped: it is not given back before that one has let go of it. */
static void stopped(void) {
    pthread_t thread;
    int fd = open_file(O_RDONLY), is_served = getenv("MAPWRIGHT_RUN_SOCKET") != NULL;
    work.model = contents(fd), work.map = map_part(fd, 0, len);
    change(work.map, work.model, 0, len, 2);
    if (is_served)
        CHECK(kill(getppid(), SIGSTOP) == 0);
    usleep(50000);
    CHECK(pthread_create(&thread, NULL, protector, NULL) == 0);
    usleep(200000);
    int was_early = __atomic_load_n(&work.stop, __ATOMIC_SEQ_CST) && is_served;
    if (is_served)
        CHECK(kill(getppid(), SIGCONT) == 0);
    CHECK(pthread_join(thread, NULL) == 0 && !was_early);
    is(work.map, work.model, len);
}

/* What makes it another map keeps what was changed, where the kernel does. */
static void altered(void) {
    int fd = open_file(O_RDONLY);
    unsigned char *before = contents(fd), *model = contents(fd), *map = map_part(fd, 0, len), vector;
    change(map, model, 0, len, 1);
    CHECK(mprotect(map + MIB, MIB, PROT_READ) == 0);
    is(map, model, len);
    CHECK(mprotect(map + MIB, MIB, PROT_READ | PROT_WRITE) == 0);
    change(map, model, 0, len, 2);
    is(map, model, len);
    CHECK(munmap(map, len) == 0);

    map = map_part(fd, 0, len), model = contents(fd);
    change(map, model, 0, len, 3);
    CHECK(munmap(map + 3 * MIB, MIB) == 0 && mincore(map + 3 * MIB, PAGE, &vector) == -1);
    is(map, model, 3 * MIB);
    is(map + 4 * MIB, model + 4 * MIB, len - 4 * MIB);
    CHECK(munmap(map, len) == 0);

    map = map_part(fd, 0, 4 * MIB), model = contents(fd);
    change(map, model, 0, 4 * MIB, 4);
    map = mremap(map, 4 * MIB, 5 * MIB, MREMAP_MAYMOVE);
    CHECK(map != MAP_FAILED);
    is(map, model, 5 * MIB);
    CHECK(mmap(map + MIB, MIB, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, MIB) == map + MIB);
    is(map + MIB, before + MIB, MIB);
    is(map + 2 * MIB, model + 2 * MIB, 3 * MIB);
    CHECK(mmap(map, MIB, PROT_READ, MAP_PRIVATE | MAP_FIXED, -1, 0) == MAP_FAILED && errno == EBADF);
    is(map, model, MIB);
    CHECK(munmap(map + 1, len) == -1 && errno == EINVAL);
    is(map, model, MIB);

    map = map_part(fd, 0, len), model = contents(fd);
    change(map, model, 0, len, 5);
    CHECK(munmap(map + 1, len) == -1 && errno == EINVAL);
    is(map, model, len);
    CHECK(mlock(map, PAGE) == 0 && munlock(map, PAGE) == 0);
    is(map, model, len);

    map = map_part(fd, 0, len), model = contents(fd); /* what was changed is thrown away */
    change(map, model, 0, len, 6);
    CHECK(madvise(map, len, MADV_SEQUENTIAL) == 0 && posix_madvise(map, len, POSIX_MADV_DONTNEED) == 0);
    is(map, model, len);
    CHECK(madvise(map + MIB, 2 * MIB, MADV_DONTNEED) == 0);
    is(map, model, MIB);
    is(map + MIB, before + MIB, 2 * MIB);
    is(map + 3 * MIB, model + 3 * MIB, len - 3 * MIB);
    change(map, model, 0, MIB, 8);
    is(map, model, MIB);
}

static sigjmp_buf back;

static void on_bus(int signal) {
    (void)signal;
    siglongjmp(back, 1);
}

/* Of a file that is cut what was changed behind its end is gone, and the rest stays. */
static void cut(void) {
    int fd = open_file(O_RDONLY);
    unsigned char *model = contents(fd), *map = map_part(fd, 0, len);
    change(map, model, 0, len, 3);
    is(map, model, len);
    signal(SIGBUS, on_bus);
    CHECK(truncate(path, 5 * MIB) == 0);
    for (size_t at = 5 * MIB; at < len; at += MIB / 2)
        if (sigsetjmp(back, 1) == 0) {
            volatile unsigned char byte = map[at];
            (void)byte;
            fail("a touch past the end of the file");
        }
    is(map, model, 5 * MIB);
    change(map, model, 0, 5 * MIB, 4);
    is(map, model, 5 * MIB);
}

/* Cut by somebody who knows of nothing, in a way that no lease is told of: a page that is not there any more is found out when it is touched. */
static void cut_unseen(const char *self) {
    char *arguments[] = {(char *)self, "cutter", (char *)path, NULL}, *environment[] = {NULL};
    int fd = open_file(O_RDONLY), status;
    unsigned char *model = contents(fd), *map = map_part(fd, 0, len);
    change(map, model, 0, MIB, 2);
    is(map, model, MIB);
    pid_t cutter;
    CHECK(posix_spawn(&cutter, "/proc/self/exe", NULL, NULL, arguments, environment) == 0);
    CHECK(waitpid(cutter, &status, 0) == cutter && status == 0);
    signal(SIGBUS, on_bus);
    size_t places[] = {7 * MIB, 3 * PAGE, 2 * PAGE, 5 * MIB};
    for (size_t index = 0; index < sizeof places / sizeof *places; index++)
        if (sigsetjmp(back, 1) == 0) {
            map[places[index]] = 1;
            fail("a touch past the end of the file");
        }
}

/* Goes on when its parent is gone, with threads that count meanwhile. */
static void wait_for_the_end(void) {
    pid_t parent = getppid();
    puts("half");
    fflush(stdout);
    while (getppid() == parent)
        usleep(1000);
}

static void hold(void) {
    work.fd = open_file(O_RDONLY);
    work.model = contents(work.fd);
    work.map = map_part(work.fd, 0, len);
    count_while(wait_for_the_end);
    unsigned char *again = map_part(work.fd, 0, len);
    is(again, work.model, len);
}

/* What can't be served, for what else the program has said. */
static void others(void) {
    int fd = open_file(O_RDONLY), both = open(path, O_RDWR);
    unsigned char *model = contents(fd), *map = map_part(both, 0, len);
    change(map, model, 0, len, 1);
    is(map, model, len);
    unsigned char *shared = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, both, 0);
    CHECK(shared != MAP_FAILED && munmap(shared, len) == 0 && munmap(map, len) == 0 && close(both) == 0);
    CHECK(mmap(NULL, len, PROT_NONE, MAP_PRIVATE, fd, 0) != MAP_FAILED);
    struct rlimit limit = {1 << 30, 1 << 30};
    CHECK(setrlimit(RLIMIT_DATA, &limit) == 0);
    map = map_part(fd, 0, len), model = contents(fd);
    change(map, model, 0, len, 1);
    is(map, model, len);
}

int main(int count, char **arguments) {
    if (count < 3)
        return 2;
    const char *what = arguments[1];
    path = arguments[2];
    alarm(100); /* one that hangs says nothing */
#define DO(name, call) else if (strcmp(what, name) == 0) call
    if (strcmp(what, "cutter") == 0)
        return open(path, O_RDONLY | O_TRUNC) < 0;
    DO("stores", stores());
    DO("written", counted(write_the_file));
    DO("protected", counted(protect_a_page));
    DO("unmapped", counted(unmap_a_page));
    DO("children", counted(make_children));
    DO("fork", forked());
    DO("meanwhile", forked_meanwhile());
    DO("late", forked_late());
    DO("stopped", stopped());
    DO("altered", altered());
    DO("cut", cut());
    DO("unseen", cut_unseen(arguments[0]));
    DO("hold", hold());
    DO("others", others());
    else return 2;
    puts("right");
    return 0;
}
