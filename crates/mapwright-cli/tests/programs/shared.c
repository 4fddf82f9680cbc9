/* A program that writes files by shared mappings, with one descriptor of each, and knows of no pager: the tests run it with `mapwright run` and
 * without. Prints nothing that depends on addresses, and ends with 0 if all is as it should be. */
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "file.h"

static unsigned char *map_part(int fd, int protection, size_t from, size_t bytes) {
    unsigned char *map = mmap(NULL, bytes, protection, MAP_SHARED, fd, from);
    CHECK(map != MAP_FAILED);
    return map;
}

static unsigned char *map_all(int fd) {
    return map_part(fd, PROT_READ | PROT_WRITE, 0, len);
}

/* What a round stores at a place. */
static unsigned char value(size_t at, unsigned round) {
    return (at / 257 + round * 31 + 1) ^ 0x5a;
}

/* Stores some bytes of each page, across the ends of some. */
static void store(unsigned char *map, size_t from, size_t to, unsigned round) {
    for (size_t at = from; at + 8 <= to; at += PAGE - 8)
        for (size_t byte = at; byte < at + 8; byte++)
            map[byte] = value(byte, round);
}

static void check(const unsigned char *map, size_t from, size_t to, unsigned round) {
    for (size_t at = from; at + 8 <= to; at += PAGE - 8)
        for (size_t byte = at; byte < at + 8; byte++)
            CHECK(map[byte] == value(byte, round));
}

/* What another open file description sees. */
static void check_file(size_t from, size_t to, unsigned round) {
    int fd = open(path, O_RDONLY);
    unsigned char *bytes = malloc(len);
    CHECK(fd >= 0 && bytes && pread(fd, bytes, len, 0) == (ssize_t)len);
    check(bytes, from, to, round);
    free(bytes);
    close(fd);
}

/* What a program sees that knows of nothing. */
static void check_elsewhere(size_t at, unsigned round) {
    char command[4096];
    const char *format = "LD_PRELOAD= dd if='%s' bs=1 skip=%zu count=1 status=none";
    snprintf(command, sizeof command, format, path, at);
    FILE *pipe = popen(command, "r");
    CHECK(pipe && fgetc(pipe) == value(at, round) && pclose(pipe) == 0);
}

static void whole(void) {
    int fd = open_file(O_RDWR);
    unsigned char *map = map_all(fd);
    for (unsigned round = 0; round < 3; round++) {
        store(map, 0, len, round);
        check(map, 0, len, round);
    }
    CHECK(munmap(map, len) == 0 && close(fd) == 0);
    check_file(0, len, 2);
}

/* The map outlives its descriptor, and ends with the program. */
static void left(void) {
    int fd = open_file(O_RDWR);
    unsigned char *map = map_all(fd);
    CHECK(close(fd) == 0);
    store(map, 0, len, 0);
    check(map, 0, len, 0);
}

/* Through parts of the file, one after the other. */
static void windows(void) {
    int fd = open_file(O_RDWR);
    for (unsigned round = 0; round < 2; round++)
        for (size_t from = 0; from < 8 * MIB; from += MIB) {
            unsigned char *map = map_part(fd, PROT_READ | PROT_WRITE, from, MIB);
            store(map, 0, MIB, round + from / MIB);
            CHECK(munmap(map, MIB) == 0);
        }
    for (size_t from = 0; from < 8 * MIB; from += MIB) {
        unsigned char *map = map_part(fd, PROT_READ, from, MIB);
        check(map, 0, MIB, 1 + from / MIB);
        CHECK(munmap(map, MIB) == 0);
    }
}

/* Two maps of one file, of which one is for reading. */
static void twice(void) {
    int fd = open_file(O_RDWR);
    unsigned char *one = map_all(fd), *other = map_part(fd, PROT_READ, MIB, 4 * MIB);
    store(one, 0, len, 0);
    for (size_t at = MIB; at < 5 * MIB; at += 100)
        CHECK(one[at] == other[at - MIB]);
    CHECK(munmap(one, len) == 0);
    store(map_all(fd), 0, len, 1);
    CHECK(other[PAGE] == other[PAGE]);
    check_file(0, len, 1);
}

static void synced(void) {
    int fd = open_file(O_RDWR);
    unsigned char *map = map_all(fd);
    for (unsigned round = 0; round < 4; round++) {
        store(map, 0, len, round);
        CHECK(msync(map + MIB, MIB, MS_SYNC) == 0 && msync(map, len, MS_ASYNC) == 0 && msync(map, len, MS_SYNC) == 0);
        check(map, 0, len, round);
    }
    CHECK(msync(map + 1, PAGE, MS_SYNC) == -1 && errno == EINVAL);
    CHECK(msync(map, len, MS_SYNC | MS_ASYNC) == -1 && errno == EINVAL);
    CHECK(munmap(map, len) == 0 && msync(map, PAGE, MS_SYNC) == -1 && errno == ENOMEM);
}

/* What is past the end of the file in its last page is nobody's. */
static void tail(void) {
    int fd = open_file(O_RDWR);
    unsigned char *map = map_all(fd);
    CHECK(len % PAGE && map[len] == 0);
    memset(map + len - 10, 'x', 20);
    CHECK(map[len - 1] == 'x' && munmap(map, len) == 0);
    struct stat stat;
    CHECK(fstat(fd, &stat) == 0 && (size_t)stat.st_size == len && ftruncate(fd, len + PAGE) == 0);
    unsigned char bytes[20];
    CHECK(pread(fd, bytes, 20, len - 10) == 20 && bytes[9] == 'x' && bytes[10] == 0);
    CHECK(ftruncate(fd, len) == 0);
}

/* Others see what was stored when they open the file, and the map sees what they write. */
static void others(void) {
    int fd = open_file(O_RDWR);
    unsigned char *map = map_all(fd);
    store(map, 0, len, 1);
    check_file(0, len, 1);
    int other = open(path, O_WRONLY);
    CHECK(other >= 0 && pwrite(other, "another", 7, 3 * MIB + 9) == 7 && memcmp(map + 3 * MIB + 9, "another", 7) == 0);
    CHECK(munmap(map, len) == 0 && close(other) == 0);
    map = map_all(fd); /* served anew */
    store(map, 0, len, 2);
    CHECK(truncate(path, len - MIB) == 0 && truncate(path, len) == 0 && map[len - 5] == 0);
    check(map, 0, len - MIB - PAGE, 2);
    CHECK(munmap(map, len) == 0);
    map = map_all(fd);
    store(map, 0, len, 3);
    check_elsewhere(5 * MIB - 5 * MIB % (PAGE - 8), 3);
}

enum { THREADS = 4, PAGES = 64 };
static unsigned char *counted;
static volatile int is_over;

/* Counts in words of its own, in pages that others count in too. */
static void *count(void *which) {
    uint64_t rounds = 0;
    while (!is_over || rounds < 10) {
        rounds++;
        for (size_t page = 0; page < PAGES; page++) {
            volatile uint64_t *word = (uint64_t *)(counted + page * 31 * PAGE) + (size_t)which;
            CHECK(*word == rounds - 1);
            *word = rounds;
        }
    }
    return (void *)rounds;
}

/* Threads store while the map is given back, by an open of the file, by another descriptor and so on: nothing that they store is lost. */
static void threads(void) {
    for (int round = 0; round < 6; round++) {
        int fd = open_file(O_RDWR);
        counted = map_all(fd);
        for (size_t page = 0; page < PAGES; page++)
            memset(counted + page * 31 * PAGE, 0, PAGE);
        pthread_t all[THREADS];
        is_over = 0;
        for (size_t which = 0; which < THREADS; which++)
            CHECK(pthread_create(&all[which], NULL, count, (void *)which) == 0);
        usleep(20000);
        if (round < 3) {
            int other = open(path, O_RDONLY);
            CHECK(other >= 0 && close(other) == 0);
        } else if (round < 5) {
            CHECK(mprotect(counted + 7 * MIB, MIB, PROT_READ | PROT_WRITE) == 0);
        } else {
            unsigned char *more = mmap(NULL, MIB, PROT_READ, MAP_PRIVATE, fd, 0);
            CHECK(more != MAP_FAILED);
        }
        usleep(20000);
        is_over = 1;
        int other = open(path, O_RDONLY);
        for (size_t which = 0; which < THREADS; which++) {
            void *rounds;
            CHECK(pthread_join(all[which], &rounds) == 0);
            for (size_t page = 0; page < PAGES; page++) {
                uint64_t word;
                CHECK(pread(other, &word, 8, page * 31 * PAGE + which * 8) == 8 && word == (uint64_t)rounds);
                CHECK(((uint64_t *)(counted + page * 31 * PAGE))[which] == word);
            }
        }
        for (size_t page = 0; page < PAGES; page++)
            memset(counted + page * 31 * PAGE, 0, PAGE);
        CHECK(munmap(counted, len) == 0 && close(fd) == 0 && close(other) == 0);
    }
}

/* Parent and child see the same. */
static void forked(void) {
    int fd = open_file(O_RDWR), status;
    unsigned char *map = map_all(fd);
    store(map, 0, len, 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        check(map, 0, len, 0);
        store(map, 0, len, 1);
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    check(map, 0, len, 1);
    CHECK(munmap(map, len) == 0);
    map = map_all(fd);
    check(map, 0, len, 1);
}

/* A child is killed when it has stored; nobody else knew of it. */
static void killed(void) {
    int status;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        int fd = open_file(O_RDWR);
        store(map_all(fd), 0, len, 0);
        raise(SIGKILL);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status));
    close(open_file(O_RDONLY));
    check_file(0, len, 0);
}

static void changed(void) {
    int fd = open_file(O_RDWR);
    unsigned char *map = map_all(fd);
    store(map, 0, len, 0);
    CHECK(munmap(map + MIB, MIB) == 0);
    check(map, 0, MIB, 0);
    store(map, 2 * MIB, len, 3);
    check(map, 2 * MIB, len, 3);
    CHECK(munmap(map, len) == 0);
    map = map_all(fd);
    unsigned char *moved = mremap(map, len, len + MIB, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED);
    store(moved, 0, len, 4);
    CHECK(madvise(moved, len, MADV_DONTNEED) == 0);
    check(moved, 0, len, 4);
    CHECK(munmap(moved, len + MIB) == 0);
    map = map_all(fd);
    store(map, 0, len, 5);
    CHECK(madvise(map, len, MADV_DONTNEED) == 0 && madvise(map, len, MADV_RANDOM) == 0);
    check(map, 0, len, 5);
    CHECK(madvise(map + MIB, MIB, MADV_REMOVE) == 0 && map[MIB + 5] == 0);
    check(map, 2 * MIB + PAGE - 2 * MIB % (PAGE - 8), 2 * MIB, 5);
}

static sigjmp_buf back;

static void on_signal(int signal) {
    (void)signal;
    siglongjmp(back, 1);
}

/* What a stream writes that knows nothing of a descriptor put in its place is seen. */
static void streamed(void) {
    int fd = open_file(O_RDWR), out = dup(1);
    unsigned char *map = map_all(fd);
    store(map, 0, len, 0);
    CHECK(out >= 0 && lseek(fd, MIB, SEEK_SET) == MIB && dup2(fd, 1) == 1);
    CHECK(printf("by a stream") == 11 && fflush(stdout) == 0 && dup2(out, 1) == 1);
    CHECK(memcmp(map + MIB, "by a stream", 11) == 0);
    map[MIB] = 'B';
    check_file(2 * MIB + PAGE - 8 - 2 * MIB % (PAGE - 8), len, 0);
}

struct shared {
    sem_t asked, answered;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    unsigned number;
};

/* Answers, by what is in the map. */
static void *answer(void *in) {
    struct shared *shared = in;
    CHECK(sem_wait(&shared->asked) == 0 && sem_post(&shared->answered) == 0);
    CHECK(pthread_mutex_lock(&shared->mutex) == 0);
    while (shared->number == 0)
        CHECK(pthread_cond_wait(&shared->changed, &shared->mutex) == 0);
    CHECK(pthread_mutex_unlock(&shared->mutex) == 0 && sem_post(&shared->answered) == 0);
    return NULL;
}

/* A thread sleeps in the map when that is given back, in a semaphore or a condition, and is woken all the same. */
static void slept(void) {
    pthread_mutexattr_t of_mutex;
    pthread_condattr_t of_condition;
    alarm(60);
    int fd = open_file(O_RDWR);
    CHECK(pthread_mutexattr_init(&of_mutex) == 0 && pthread_condattr_init(&of_condition) == 0);
    CHECK(pthread_mutexattr_setpshared(&of_mutex, PTHREAD_PROCESS_SHARED) == 0);
    CHECK(pthread_condattr_setpshared(&of_condition, PTHREAD_PROCESS_SHARED) == 0);
    for (int round = 0; round < 10; round++) {
        unsigned char *map = map_all(fd);
        struct shared *shared = (struct shared *)(map + 3 * MIB);
        memset(shared, 0, sizeof *shared);
        CHECK(sem_init(&shared->asked, 1, 0) == 0 && sem_init(&shared->answered, 1, 0) == 0);
        CHECK(pthread_mutex_init(&shared->mutex, &of_mutex) == 0);
        CHECK(pthread_cond_init(&shared->changed, &of_condition) == 0);
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, answer, shared) == 0);
        usleep(20000);
        if (round % 2)
            close(open_file(O_RDONLY)); /* while it waits for a question */
        CHECK(sem_post(&shared->asked) == 0 && sem_wait(&shared->answered) == 0);
        usleep(20000);
        if (round % 2 == 0)
            close(open_file(O_RDONLY)); /* while it waits for the number */
        CHECK(pthread_mutex_lock(&shared->mutex) == 0);
        shared->number = 1;
        CHECK(pthread_cond_signal(&shared->changed) == 0 && pthread_mutex_unlock(&shared->mutex) == 0);
        CHECK(sem_wait(&shared->answered) == 0 && pthread_join(thread, NULL) == 0);
        memset(shared, 0, sizeof *shared);
        CHECK(munmap(map, len) == 0);
    }
}

/* A map for reading is not written, whatever its descriptor could. */
static void reading(void) {
    int fd = open_file(O_RDWR);
    volatile unsigned char *map = map_part(fd, PROT_READ, 0, len);
    unsigned char byte = map[MIB];
    signal(SIGSEGV, on_signal);
    if (sigsetjmp(back, 1) == 0) {
        map[MIB] = byte + 1;
        fail("a store in a map for reading");
    }
    CHECK(map[MIB] == byte && mprotect((void *)map, len, PROT_READ | PROT_WRITE) == 0);
    map[MIB] = byte + 1;
    CHECK(munmap((void *)map, len) == 0);
}

/* Says when it has stored, waits for somebody, and looks whether it is still there. */
static void hold(void) {
    int fd = open_file(O_RDWR);
    unsigned char *map = map_all(fd), byte;
    store(map, 0, len, 0);
    CHECK(write(1, "stored\n", 7) == 7 && read(0, &byte, 1) == 1);
    signal(SIGBUS, on_signal);
    if (sigsetjmp(back, 1) != 0) {
        CHECK(pread(fd, &byte, 1, 0) == -1 && errno == EIO);
        CHECK(fsync(fd) == -1 && errno == EIO && msync(map, len, MS_SYNC) == -1 && errno == EIO);
        alarm(20); /* nobody waits for a server that is gone */
        CHECK(open(path, O_RDONLY) >= 0);
        printf("signal\n");
        exit(0);
    }
    for (int tries = 0; byte == 'k' && tries < 1000; tries++) { /* the server is gone, which is heard of in a moment */
        check(map, 0, len, 0);
        usleep(10000);
    }
    check(map, 0, len, 0);
}

int main(int count, char **arguments) {
    if (count != 3)
        return 2;
    path = arguments[2];
    const struct { const char *name; void (*run)(void); } all[] = {
        {"whole", whole}, {"left", left}, {"windows", windows}, {"twice", twice}, {"synced", synced}, {"tail", tail},
        {"others", others}, {"threads", threads}, {"fork", forked}, {"killed", killed}, {"changed", changed},
        {"reading", reading}, {"stream", streamed}, {"sleep", slept}, {"hold", hold},
    };
    for (size_t index = 0; index < sizeof all / sizeof *all; index++)
        if (strcmp(all[index].name, arguments[1]) == 0) {
            all[index].run();
            printf("right\n");
            return 0;
        }
    return 2;
}
