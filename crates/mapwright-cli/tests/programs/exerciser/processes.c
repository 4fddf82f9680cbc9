/* Children, programs that are started, and threads that look on. */
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "exerciser.h"

extern char **environ;

static pthread_t threads[2];
static unsigned thread_count;
static int stopping;

/* A child has the same mappings and descriptors; its private copies are its own. It works for a while and ends, and so does the parent's wait. */
void child(void) {
    if (is_child)
        return;
    unsigned count = below(10);
    bool is_killed = one_in(6), closes = one_in(4);
    note("fork, %u operations%s%s", count, is_killed ? ", killed" : "", closes ? ", closes all" : "");
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
        is_child = true;
        thread_count = 0;
        maps_lock = (pthread_rwlock_t)PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
        inherit_positions();
        check_maps(2);
        do_some(count);
        if (closes) {
            CHECK(close_range(3, ~0u, 0) == 0);
            descriptor_count = 0;
        }
        check_maps(1);
        if (is_killed)
            kill(getpid(), SIGKILL);
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid);
    if (is_killed ? !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) : status != 0)
        fail("a child ended with status %#x", status);
    check_maps(1);
}

/* A program is started that compares the whole file with the model, or works on it for a while too. Without its environment nothing is preloaded into it:
 * it is anybody. */
void program(void) {
    static const char *const all[] = {"read", "map", "work"};
    if (is_child)
        return;
    const char *what = all[below(3)];
    char model[16];
    snprintf(model, sizeof model, "%d", model_fd);
    char *arguments[] = {"exerciser", "--program", model, (char *)what, NULL}, *none[] = {NULL};
    char **environment = one_in(2) ? none : environ;
    unsigned way = below(3);
    note("a program: %s, %u, %s", what, way, environment == none ? "without environment" : "with the environment");
    pid_t pid = -1;
    if (way == 0) {
        CHECK(posix_spawn(&pid, "/proc/self/exe", NULL, NULL, arguments, environment) == 0);
    } else {
        pid = way == 1 ? vfork() : fork();
        if (pid == 0) {
            execve("/proc/self/exe", arguments, environment);
            _exit(127);
        }
    }
    int status;
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
    if (status != 0)
        fail("a program ended with status %#x", status);
    check_maps(1);
}

/* What such a program does. */
int be_program(const char *what) {
    me = PROCESSES;
    is_child = true;
    watch_signals();
    CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
    check_all(strcmp(what, "map") == 0);
    if (strcmp(what, "work") == 0)
        do_some(1 + below(60));
    check_maps(2);
    return 0;
}

/* Looks at eight bytes of a shared mapping. If nobody has changed the page meanwhile they are those of the model: older ones are no excuse. */
static void look(uint64_t *random) {
    *random = *random * 6364136223846793005 + 1442695040888963407;
    const struct map *map = &maps[(*random >> 33) % map_count];
    *random = *random * 6364136223846793005 + 1442695040888963407;
    uint64_t page = (*random >> 33) % map->pages, in = (*random >> 20) % (PAGE / 8) * 8, at = map->first + page;
    if (!map->shared || !(map->protection & PROT_READ) || at >= PAGES)
        return;
    struct file *of = &shared->files[map->file];
    uint32_t before = __atomic_load_n(&of->changes[at], __ATOMIC_SEQ_CST);
    bool is_there = at < pages_of(__atomic_load_n(&of->len, __ATOMIC_SEQ_CST));
    uint64_t expected = __atomic_load_n((uint64_t *)(of->bytes + at * PAGE + in), __ATOMIC_SEQ_CST), found = 0;
    int number = guarded_copy(&found, map->at + page * PAGE + in, 8);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (before % 2 || before != __atomic_load_n(&of->changes[at], __ATOMIC_SEQ_CST))
        return;
    if (is_there ? number || found != expected : number != SIGBUS)
        fail("a thread that looks on, page %llu of file %d, byte %llu by %p: expected %#llx, found %#llx, signal %d",
            (unsigned long long)at, map->file, (unsigned long long)in, (void *)map->at, (unsigned long long)expected,
            (unsigned long long)found, number);
}

static void *look_on(void *seed) {
    uint64_t random = (uintptr_t)seed;
    while (!__atomic_load_n(&stopping, __ATOMIC_SEQ_CST)) {
        CHECK(pthread_rwlock_rdlock(&maps_lock) == 0);
        for (unsigned i = 0; i < 8 && map_count; i++)
            look(&random);
        CHECK(pthread_rwlock_unlock(&maps_lock) == 0);
        usleep(random >> 55);
    }
    return NULL;
}

void start_threads(unsigned count) {
    __atomic_store_n(&stopping, 0, __ATOMIC_SEQ_CST);
    for (thread_count = 0; thread_count < count; thread_count++)
        CHECK(pthread_create(&threads[thread_count], NULL, look_on, (void *)(uintptr_t)(me * 2 + thread_count)) == 0);
}

void stop_threads(void) {
    __atomic_store_n(&stopping, 1, __ATOMIC_SEQ_CST);
    while (thread_count)
        CHECK(pthread_join(threads[--thread_count], NULL) == 0);
}
