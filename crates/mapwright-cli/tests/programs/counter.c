/* A counter in a shared mapping of a file, with a robust mutex: processes add to it, some are killed while they do, and none of what was
 * added is lost or counted twice. counter FILE: prints nothing that depends on who was killed where. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1 << 20)
enum { PROCESSES = 8, KILLED = 3, GENERATIONS = 12, ADDED = 100000 };

struct shared {
    pthread_mutex_t mutex;
    uint64_t sum;
    uint64_t repaired;
    uint64_t own[PROCESSES];       /* added to the sum, by each; under the mutex */
    uint64_t acknowledged[PROCESSES]; /* written by each after it has unlocked */
};

static struct shared *shared;
static const unsigned char *shown; /* the same bytes, mapped for reading */

static void fail(const char *what) {
    printf("wrong: %s (errno %d: %s)\n", what, errno, strerror(errno));
    fflush(stdout);
    _exit(1);
}

#define CHECK(holds) do { if (!(holds)) fail(#holds); } while (0)

static uint64_t all_own(void) {
    uint64_t sum = 0;
    for (int index = 0; index < PROCESSES; index++)
        sum += shared->own[index];
    return sum;
}

static void enter(void) {
    int result = pthread_mutex_lock(&shared->mutex);
    if (result == EOWNERDEAD) {
        shared->sum = all_own();
        shared->repaired++;
        CHECK(pthread_mutex_consistent(&shared->mutex) == 0);
    } else {
        CHECK(result == 0);
    }
    CHECK(shared->sum == all_own());
}

static void leave(void) {
    CHECK(pthread_mutex_unlock(&shared->mutex) == 0);
}

static void add(int index) {
    enter();
    __atomic_store_n(&shared->own[index], shared->own[index] + 1, __ATOMIC_SEQ_CST);
    __atomic_store_n(&shared->sum, shared->sum + 1, __ATOMIC_SEQ_CST); /* may be killed in between */
    leave();
    __atomic_store_n(&shared->acknowledged[index], shared->acknowledged[index] + 1, __ATOMIC_SEQ_CST);
}

static pid_t start(int index, int for_ever) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child != 0)
        return child;
    CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
    for (int done = 0; for_ever || done < ADDED; done++)
        add(index);
    _exit(0);
}

static uint64_t sum_shown(void) {
    return __atomic_load_n((const uint64_t *)(shown + offsetof(struct shared, sum)), __ATOMIC_SEQ_CST);
}

int main(int count, char **arguments) {
    int status;
    CHECK(count == 2);
    alarm(100);
    int fd = open(arguments[1], O_RDWR), reader = open(arguments[1], O_RDONLY);
    CHECK(fd >= 0 && reader >= 0 && ftruncate(fd, 2 * MIB) == 0);
    shared = mmap(NULL, 2 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    shown = mmap(NULL, 2 * MIB, PROT_READ, MAP_SHARED, reader, 0);
    CHECK(shared != MAP_FAILED && shown != MAP_FAILED);
    pthread_mutexattr_t kind;
    CHECK(pthread_mutexattr_init(&kind) == 0 && pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST) == 0);
    CHECK(pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED) == 0 && pthread_mutex_init(&shared->mutex, &kind) == 0);
    pid_t children[PROCESSES];
    for (int index = 0; index < PROCESSES; index++)
        children[index] = start(index, index < KILLED);
    uint64_t before = 0;
    for (int generation = 0; generation < GENERATIONS; generation++) {
        int index = generation % KILLED;
        uint64_t from = __atomic_load_n(&shared->acknowledged[index], __ATOMIC_SEQ_CST);
        while (__atomic_load_n(&shared->acknowledged[index], __ATOMIC_SEQ_CST) < from + 50 + generation * 13)
            usleep(10);
        CHECK(kill(children[index], SIGKILL) == 0 && waitpid(children[index], &status, 0) == children[index]);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        CHECK(sum_shown() >= before);
        before = sum_shown();
        /* What it has acknowledged counts, and nothing but one that it was about to. The next one goes on from there. */
        enter();
        uint64_t own = shared->own[index], acknowledged = shared->acknowledged[index];
        CHECK(own == acknowledged || own == acknowledged + 1);
        shared->acknowledged[index] = own;
        leave();
        children[index] = start(index, 1);
    }
    for (int index = 0; index < KILLED; index++)
        CHECK(kill(children[index], SIGKILL) == 0 && waitpid(children[index], &status, 0) == children[index]);
    for (int index = KILLED; index < PROCESSES; index++)
        CHECK(waitpid(children[index], &status, 0) == children[index] && status == 0);
    enter();
    for (int index = KILLED; index < PROCESSES; index++)
        CHECK(shared->own[index] == ADDED && shared->acknowledged[index] == ADDED);
    CHECK(shared->sum == all_own() && sum_shown() == shared->sum);
    uint64_t in_file;
    CHECK(pread(reader, &in_file, sizeof in_file, offsetof(struct shared, sum)) == sizeof in_file);
    CHECK(in_file == shared->sum);
    leave();
    printf("right\n");
    return 0;
}
