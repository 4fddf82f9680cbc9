/* What programs do that somebody who takes the place of the C library's calls may trip over. odd WHAT FILE: prints "right" if a map shows the
 * file all the while. It knows of no pager, and says the same with one and without. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "file.h"

static const char *self;

static unsigned char *map_file(int fd) {
    unsigned char *map = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED);
    return map;
}

/* Whether one byte in each 32 KiB is what read(2) says. Little stack is used. */
static int shows(const unsigned char *map, int fd) {
    for (size_t at = 0; at < len; at += 8 * PAGE) {
        unsigned char byte;
        if (pread(fd, &byte, 1, at) != 1 || map[at] != byte)
            return 0;
    }
    return 1;
}

static void map_and_look(void) {
    int fd = open_file(O_RDONLY);
    unsigned char *map = map_file(fd);
    CHECK(shows(map, fd) && munmap(map, len) == 0 && close(fd) == 0);
}

static int succeeded(pid_t child) {
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

#ifdef OWN_MALLOC
/* A malloc of the program's own, on mmap(2), for a program of one thread: it ends one in which two are in it at a time. Nothing is reused. */
static volatile int inside;
static unsigned char *next_free, *end_free;

static void enter_malloc(void) {
    if (__atomic_exchange_n(&inside, 1, __ATOMIC_SEQ_CST))
        abort();
}

static void leave_malloc(void) {
    __atomic_store_n(&inside, 0, __ATOMIC_SEQ_CST);
}

void *malloc(size_t bytes) {
    enter_malloc();
    size_t needed = (bytes + 16 + 15) / 16 * 16;
    if ((size_t)(end_free - next_free) < needed) {
        size_t part = needed > MIB ? needed : MIB;
        next_free = mmap(NULL, part, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (next_free == MAP_FAILED)
            abort();
        end_free = next_free + part;
    }
    unsigned char *start = next_free + 16;
    *(size_t *)next_free = bytes;
    next_free += needed;
    leave_malloc();
    return start;
}

void free(void *start) {
    if (start) {
        enter_malloc();
        leave_malloc();
    }
}

void *calloc(size_t count, size_t bytes) {
    return malloc(count * bytes);
}

void *realloc(void *start, size_t bytes) {
    void *fresh = malloc(bytes);
    if (start) {
        size_t before = *(size_t *)((unsigned char *)start - 16);
        memcpy(fresh, start, before < bytes ? before : bytes);
    }
    return fresh;
}
#endif

/* A program that sees nothing outside of a folder from now on; before its first map and after. */
static void chrooted(void) {
    char folder[PATH_MAX];
    int fd = open_file(O_RDONLY);
    CHECK(realpath(".", folder));
    for (int round = 0; round < 2; round++) {
        pid_t child = fork();
        if (child == 0) {
            unsigned char *map = round ? map_file(fd) : NULL;
            CHECK(chroot(folder) == 0 && chdir("/") == 0);
            map_and_look();
            CHECK(!map || shows(map, fd));
            _exit(0);
        }
        CHECK(succeeded(child));
    }
}

/* A daemon gives root's rights up: before its first map, and after. */
static void unprivileged(void) {
    int fd = open_file(O_RDONLY);
    for (int round = 0; round < 2; round++) {
        pid_t child = fork();
        if (child == 0) {
            unsigned char *map = round ? map_file(fd) : NULL;
            CHECK(setgroups(0, NULL) == 0 && setgid(65534) == 0 && setuid(65534) == 0);
            unsigned char *own = map_file(fd);
            CHECK(shows(own, fd) && (!map || shows(map, fd)));
            pid_t grandchild = fork();
            if (grandchild == 0)
                _exit(!shows(own, fd) || (map && !shows(map, fd)));
            CHECK(succeeded(grandchild));
            _exit(0);
        }
        CHECK(succeeded(child));
    }
}

/* Its parent ends, it closes what it knows of, and goes on when the file `go` is there. */
static void daemonized(void) {
    int fd = open_file(O_RDONLY);
    unsigned char *map = map_file(fd);
    CHECK(shows(map, fd));
    pid_t child = fork();
    CHECK(child >= 0);
    if (child > 0) {
        CHECK(shows(map, fd));
        return;
    }
    CHECK(setsid() > 0);
    map_and_look();
    child = fork();
    if (child != 0)
        _exit(child < 0);
    unsigned char *own = map_file(fd);
    CHECK(own[0] == map[0]);
    for (int other = 3; other < 2000; other++)
        if (other != fd)
            close(other);
    while (access("go", F_OK) != 0)
        usleep(1000);
    CHECK(shows(map, fd) && shows(own, fd));
    map_and_look();
    printf("daemon is right\n");
}

/* An environment without what was preloaded, and a chain of programs. */
static void chain(int left, int clears) {
    int fd = open_file(O_RDONLY);
    unsigned char *map = map_file(fd);
    CHECK(shows(map, fd));
    if (left == 0)
        return;
    char number[32];
    snprintf(number, sizeof number, "chain%d", left - 1);
    if (clears)
        CHECK(clearenv() == 0);
    execl(self, self, number, path, NULL);
    fail("execl");
}

static void spawned(void) {
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    char *arguments[] = {(char *)self, "look", (char *)path, NULL}, *nothing[] = {NULL};
    int fd = open_file(O_RDONLY);
    unsigned char *map = map_file(fd);
    CHECK(posix_spawn_file_actions_init(&actions) == 0 && posix_spawn_file_actions_addclosefrom_np(&actions, 3) == 0);
    CHECK(posix_spawnattr_init(&attributes) == 0 && posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP) == 0);
    for (int round = 0; round < 4; round++) {
        pid_t child;
        CHECK(posix_spawn(&child, self, &actions, &attributes, arguments, round % 2 ? nothing : environ) == 0);
        CHECK(succeeded(child));
        child = vfork();
        if (child == 0) {
            execve(self, arguments, round % 2 ? nothing : environ);
            _exit(1);
        }
        CHECK(succeeded(child) && shows(map, fd));
    }
}

static volatile sig_atomic_t handled;
static int heard[2];

static void on_signal(int signal) {
    int before = errno;
    (void)signal;
    map_and_look();
    handled++;
    CHECK(write(heard[1], "", 1) == 1);
    errno = before;
}

/* Maps in a signal handler, which may run while the program maps. The next signal comes a moment after the handler is done: with one that is
 * pending already the program would be in the handler for ever, and never be interrupted. */
static void in_handlers(void) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    alarm(60);
    CHECK(pipe(heard) == 0 && sigaction(SIGUSR1, &action, NULL) == 0);
    pid_t child = fork();
    if (child == 0) {
        char byte;
        pid_t to = getppid();
        while (kill(to, SIGUSR1) == 0 && getppid() == to && read(heard[0], &byte, 1) == 1)
            usleep(700);
        _exit(0);
    }
    while (handled < 150)
        map_and_look();
    action.sa_handler = SIG_IGN;
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0 && kill(child, SIGKILL) == 0);
    CHECK(waitpid(child, NULL, 0) == child);
}

static void *look(void *argument) {
    map_and_look();
    return argument;
}

/* On the smallest stack that a thread may have. */
static void on_little_stack(void) {
    pthread_attr_t attributes;
    pthread_t thread;
    open_file(O_RDONLY);
    size_t least = PTHREAD_STACK_MIN > 16384 ? PTHREAD_STACK_MIN : 16384;
    CHECK(pthread_attr_init(&attributes) == 0 && pthread_attr_setstacksize(&attributes, least) == 0);
    for (int round = 0; round < 3; round++)
        CHECK(pthread_create(&thread, &attributes, look, NULL) == 0 && pthread_join(thread, NULL) == 0);
}

static void *cancelled_itself(void *argument) {
    int fd = open(path, O_RDONLY);
    pthread_cancel(pthread_self()); /* from the next cancellation point on: mmap(2) and munmap(2) are none */
    unsigned char *map = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0);
    *(unsigned char *)argument = map != MAP_FAILED && munmap(map, len) == 0;
    pthread_testcancel();
    return NULL;
}

static void when_cancelled(void) {
    pthread_t thread;
    void *result;
    unsigned char mapped = 0;
    open_file(O_RDONLY);
    CHECK(pthread_create(&thread, NULL, cancelled_itself, &mapped) == 0 && pthread_join(thread, &result) == 0);
    CHECK(result == PTHREAD_CANCELED && mapped);
    map_and_look();
}

static volatile int stop;

static void *map_for_ever(void *argument) {
    while (!stop)
        map_and_look();
    return argument;
}

/* Forks while other threads are in the middle of mapping; the children map too. */
static void fork_storm(void) {
    pthread_t threads[3];
    alarm(100);
    int fd = open_file(O_RDONLY);
    unsigned char *map = map_file(fd);
    for (int index = 0; index < 3; index++)
        CHECK(pthread_create(&threads[index], NULL, map_for_ever, NULL) == 0);
    for (int round = 0; round < 40; round++) {
        pid_t child = fork();
        if (child == 0) {
            alarm(60);
            CHECK(shows(map, fd));
            if (round % 2)
                map_and_look();
            _exit(0);
        }
        CHECK(succeeded(child));
    }
    stop = 1;
    for (int index = 0; index < 3; index++)
        CHECK(pthread_join(threads[index], NULL) == 0);
    CHECK(shows(map, fd));
}

/* With hardly a descriptor left, and with none. */
static void few_descriptors(void) {
    struct rlimit few = {10, 10};
    int fd = open_file(O_RDONLY);
    CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
    unsigned char *map = map_file(fd);
    CHECK(shows(map, fd));
    while (dup(fd) >= 0)
        continue;
    CHECK(errno == EMFILE);
    unsigned char *another = map_file(fd);
    CHECK(shows(another, fd) && munmap(another, len) == 0);
    pid_t child = fork();
    if (child == 0) {
        unsigned char *own = map_file(fd);
        _exit(!shows(map, fd) || !shows(own, fd));
    }
    CHECK(succeeded(child));
}

/* With as much address space as it has, and a little. */
static void little_space(void) {
    unsigned long pages;
    FILE *statm = fopen("/proc/self/statm", "r");
    CHECK(statm && fscanf(statm, "%lu", &pages) == 1 && fclose(statm) == 0);
    int fd = open_file(O_RDONLY);
    struct rlimit little = {pages * PAGE + len + MIB, pages * PAGE + len + MIB};
    CHECK(setrlimit(RLIMIT_AS, &little) == 0);
    unsigned char *map = map_file(fd);
    CHECK(shows(map, fd));
    CHECK(mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0) == MAP_FAILED && errno == ENOMEM);
    CHECK(shows(map, fd) && munmap(map, len) == 0);
    map_and_look();
}

/* Allocates all the while, and is served, and written by somebody else. */
static void allocated(void) {
    int fd = open_file(O_RDONLY);
    for (int round = 0; round < 30; round++) {
        unsigned char *map = map_file(fd);
        for (size_t at = 0; at < len; at += PAGE) {
            unsigned char *volatile copy = malloc(16);
            *copy = ((volatile unsigned char *)map)[at];
            CHECK(*copy == map[at]);
            free(copy);
        }
        int writer = open(path, O_WRONLY);
        CHECK(writer >= 0 && pwrite(writer, &round, 1, 5 * PAGE) == 1 && map[5 * PAGE] == round);
        CHECK(close(writer) == 0 && shows(map, fd) && munmap(map, len) == 0);
    }
}

/* To map takes none of the usual descriptors. */
static void descriptors(void) {
    int was_open[512], lowest = open_file(O_RDONLY);
    CHECK(close(lowest) == 0);
    for (int fd = 0; fd < 512; fd++)
        was_open[fd] = fcntl(fd, F_GETFD) != -1;
    int fd = open_file(O_RDONLY);
    unsigned char *map = map_file(fd);
    CHECK(fd == lowest && shows(map, fd) && close(fd) == 0);
    for (fd = 0; fd < 512; fd++)
        CHECK(was_open[fd] == (fcntl(fd, F_GETFD) != -1));
    CHECK(open_file(O_RDONLY) == lowest && shows(map, lowest));
}

int main(int count, char **arguments) {
    if (count < 3)
        return 2;
    const char *what = arguments[1];
    self = arguments[0];
    path = arguments[2];
#define DO(name, call) else if (strcmp(what, name) == 0) call
    if (strncmp(what, "chain", 5) == 0)
        chain(atoi(what + 5), 0);
    DO("look", map_and_look());
    DO("clear", chain(1, 1));
    DO("chroot", chrooted());
    DO("unprivileged", unprivileged());
    DO("daemon", daemonized());
    DO("spawn", spawned());
    DO("handlers", in_handlers());
    DO("stack", on_little_stack());
    DO("cancel", when_cancelled());
    DO("storm", fork_storm());
    DO("few", few_descriptors());
    DO("space", little_space());
    DO("descriptors", descriptors());
    DO("malloc", allocated());
    else return 2;
    if (strcmp(what, "look"))
        puts("right");
    return 0;
}
