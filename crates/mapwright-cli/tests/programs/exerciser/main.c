/* exerciser PATH SEED OPERATIONS [PROCESSES]: makes the file, works on it at random and compares with a model. Prints "right" and what it has done, or
 * what differed, with the last operations; then it ends with 1.
 *
 * The processes live for some thousands of operations and are then replaced by new ones, some of them by SIGKILL; between these generations the
 * file is looked at by nobody but the first process. In each there are phases: see `enum phase`. It knows of no pager. */
#include <limits.h>
#include <linux/futex.h>
#include <spawn.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#include "exerciser.h"

extern char **environ;

struct shared *shared;
int model_fd;
unsigned me;
bool is_child;

/* How often each operation is drawn, by the phase. */
static const struct {
    void (*run)(void);
    unsigned weights[3];
} operations[] = {
    //                   everything, alone, readers
    {load,              {3000, 3500, 4500}},
    {store,             {1500, 3500, 600}},
    {add,               {300, 600, 100}},
    {past_the_end,      {150, 40, 100}},
    {forbidden,         {80, 20, 60}},
    {by_system_calls,   {200, 250, 250}},
    {sync_map,          {3, 5, 3}},
    {sync_map_soon,     {40, 60, 40}},
    {in_core,           {20, 20, 20}},
    {map_some,          {150, 20, 100}},
    {map_large,         {100, 60, 150}},
    {map_over,          {30, 1, 10}},
    {map_refused,       {20, 2, 20}},
    {unmap,             {150, 60, 200}},
    {unmap_part,        {50, 2, 20}},
    {remap,             {60, 3, 30}},
    {protect,           {60, 3, 20}},
    {advise,            {60, 20, 60}},
    {advise_gently,     {40, 40, 60}},
    {remove_part,       {10, 1, 0}},
    {lock_and_unlock,   {20, 1, 10}},
    {open_some,         {150, 1, 80}},
    {close_some,        {130, 3, 80}},
    {duplicate,         {40, 1, 30}},
    {set_append,        {10, 1, 0}},
    {set_time,          {10, 2, 5}},
    {read_some,         {1500, 2, 1500}},
    {write_some,        {1500, 2, 0}},
    {seek,              {200, 1, 100}},
    {copy_range,        {150, 1, 0}},
    {copy_by_pipe,      {80, 1, 0}},
    {stream,            {60, 1, 30}},
    {sync_file,         {5, 5, 5}},
    {look_at_status,    {60, 20, 60}},
    {modification_time, {1, 2, 0}},
    {truncate_some,     {40, 1, 0}},
    {allocate,          {80, 1, 0}},
    {shift,             {10, 0, 0}},
    {open_cutting,      {4, 0, 0}},
    {replace_file,      {10, 1, 2}},
    {many_threads,      {5, 20, 5}},
    {child,             {8, 1, 8}},
    {program,           {2, 1, 3}},
};

static void drop_all(bool only_writers) {
    for (unsigned i = map_count; i-- > 0;)
        if (!only_writers || maps[i].by_writer)
            unmap_at(i);
    for (unsigned i = descriptor_count; i-- > 0;)
        if (!only_writers || (descriptors[i].flags & O_ACCMODE) != O_RDONLY)
            close_at(i);
}

/* In a phase that is about mappings there is always one, of a file that is long enough. */
static void see_to_maps(void) {
    if (shared->phase == EVERYTHING || map_count || is_child)
        return;
    if (shared->files[shared->current].len < 2 * MIB) {
        drop_all(false);
        if (shared->phase == ALONE || free_file() < 0)
            truncate_some();
        else
            replace_file();
    }
    bool is_alone = shared->phase == ALONE;
    if (is_alone)
        drop_all(false);
    if (is_alone || !some_descriptor(O_RDONLY))
        open_one(is_alone ? O_RDWR : O_RDONLY);
    map_large();
}

void do_some(unsigned count) {
    // A program that was started knows of nobody who is alone.
    unsigned phase = me == PROCESSES && shared->phase == ALONE ? EVERYTHING : shared->phase, sum = 0;
    for (unsigned i = 0; i < sizeof operations / sizeof operations[0]; i++)
        sum += operations[i].weights[phase];
    while (count-- && shared->done < shared->phase_end && shared->done < shared->generation_end) {
        see_to_maps();
        unsigned drawn = below(sum), i = 0;
        while (drawn >= operations[i].weights[phase])
            drawn -= operations[i++].weights[phase];
        operations[i].run();
        shared->done++;
        if (shared->failed)
            _exit(1);
    }
}

static void next_phase(void) {
    static const unsigned lengths[] = {2000, 3000, 2000};
    shared->phase_number++;
    shared->phase = below(3);
    shared->lone = below(shared->processes);
    shared->phase_end = shared->done + 20 + below(one_in(3) ? 100 : lengths[shared->phase]);
    note("phase %u, process %u alone", shared->phase, shared->lone);
}

/* What this process has must fit to the phase. */
static void adapt(void) {
    stop_threads();
    if (shared->phase != EVERYTHING)
        drop_all(shared->phase == READERS);
    if (one_in(3) && (shared->phase != ALONE || shared->lone == me))
        start_threads(1 + below(2));
    shared->process[me].adapted = shared->phase_number;
}

static void wake_all(void) {
    syscall(SYS_futex, &shared->turn, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* Whose turn is next: those that have not adapted come first, and in a phase for one alone nobody else comes then. */
static unsigned next_turn(void) {
    unsigned start = below(shared->processes);
    for (unsigned i = 0; i < shared->processes; i++) {
        unsigned process = (start + i) % shared->processes;
        if (shared->process[process].adapted != shared->phase_number)
            return process;
    }
    return shared->phase == ALONE ? shared->lone : start;
}

/* What a process does when it has its turn. */
static void take_turn(void) {
    if (shared->process[me].adapted != shared->phase_number)
        adapt();
    else
        do_some(1 + below(40));
    if (shared->done >= shared->generation_end) {
        __atomic_store_n(&shared->over, 1, __ATOMIC_SEQ_CST);
    } else if (shared->done >= shared->phase_end) {
        if (one_in(3)) {
            note("the whole file");
            check_all(one_in(2));
        }
        check_maps(3);
        next_phase();
    }
    unsigned next = next_turn();
    if (next != me || shared->over) {
        __atomic_store_n(&shared->turn, next, __ATOMIC_SEQ_CST);
        wake_all();
    }
}

static void wait_for_turn(void) {
    for (;;) {
        uint32_t turn = __atomic_load_n(&shared->turn, __ATOMIC_SEQ_CST);
        if (turn == me || __atomic_load_n(&shared->over, __ATOMIC_SEQ_CST))
            return;
        // A process that ends the generation changes the turn or not: one second is what that may cost.
        struct timespec second = {.tv_sec = 1};
        syscall(SYS_futex, &shared->turn, FUTEX_WAIT, turn, &second, NULL, 0);
    }
}

static void become_another(void) {
    char model[16];
    snprintf(model, sizeof model, "%d", model_fd);
    execl("/proc/self/exe", "exerciser", "--program", model, "map", NULL);
    fail("execl: errno %d", errno);
}

static int work(void) {
    watch_signals();
    CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
    for (;;) {
        wait_for_turn();
        if (__atomic_load_n(&shared->over, __ATOMIC_SEQ_CST))
            break;
        take_turn();
    }
    if (shared->failed)
        return 1;
    switch (shared->process[me].ending) {
    case ORDERLY:
        stop_threads();
        while (map_count) {
            CHECK(munmap(maps[map_count - 1].at, maps[map_count - 1].pages * PAGE) == 0);
            map_count--;
        }
        while (descriptor_count)
            CHECK(close(descriptors[--descriptor_count].fd) == 0);
        return 0;
    case KILLED: kill(getpid(), SIGKILL); break;
    case AS_ANOTHER: become_another(); break;
    }
    _exit(0);
}

static pid_t pids[PROCESSES];

static void start_processes(void) {
    for (unsigned i = 0; i < shared->processes; i++) {
        char model[16], process[16];
        snprintf(model, sizeof model, "%d", model_fd);
        snprintf(process, sizeof process, "%u", i);
        char *arguments[] = {"exerciser", "--work", model, process, NULL};
        posix_spawnattr_t attributes;
        sigset_t none;
        sigemptyset(&none);
        CHECK(posix_spawnattr_init(&attributes) == 0 && posix_spawnattr_setsigmask(&attributes, &none) == 0);
        CHECK(posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK) == 0);
        CHECK(posix_spawn(&pids[i], "/proc/self/exe", NULL, &attributes, arguments, environ) == 0);
        posix_spawnattr_destroy(&attributes);
    }
}

/* Says what was going on when a process has ended as it should not, or when nothing goes on any more. */
static void give_up(const char *why, unsigned process, int status) {
    for (unsigned i = 0; i < shared->processes; i++)
        if (pids[i] > 0)
            kill(pids[i], SIGKILL);
    fail("%s: process %u, status %#x", why, process, status);
}

static void has_ended(pid_t pid, int status) {
    unsigned process = 0;
    while (process < shared->processes && pids[process] != pid)
        process++;
    CHECK(process < shared->processes);
    pids[process] = 0;
    bool is_killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    bool is_right = shared->over && !shared->failed;
    is_right &= shared->process[process].ending == KILLED ? is_killed : status == 0;
    if (!is_right)
        give_up("a process ended", process, status);
}

/* Waits for the processes of a generation. */
static void wait_for_processes(const sigset_t *waited) {
    uint64_t done = shared->done;
    unsigned idle = 0;
    for (unsigned left = shared->processes; left;) {
        int status;
        pid_t pid = waitpid(-1, &status, WNOHANG);
        CHECK(pid >= 0);
        if (pid > 0) {
            has_ended(pid, status);
            left--;
            continue;
        }
        struct timespec seconds = {.tv_sec = 5};
        int number = sigtimedwait(waited, NULL, &seconds);
        if (number == SIGTERM)
            give_up("asked to end", 0, 0);
        idle = number == -1 && done == shared->done ? idle + 1 : 0;
        done = shared->done;
        if (idle == 24)
            give_up("nothing has gone on for two minutes", shared->turn, 0);
    }
}

static void generation(const sigset_t *waited) {
    shared->generation++;
    uint64_t end = shared->done + 300 + (below(400) << below(6));
    shared->generation_end = end < shared->goal ? end : shared->goal;
    shared->over = 0;
    shared->turn = below(shared->processes);
    memset(shared->process, 0, sizeof shared->process);
    for (unsigned i = 0; i < shared->processes; i++)
        shared->process[i].ending = below(4);
    next_phase();
    start_processes();
    wait_for_processes(waited);
    memset(shared->process, 0, sizeof shared->process);
    check_all(one_in(2));
}

static int start(char **arguments) {
    uint64_t processes = arguments[4] ? strtoull(arguments[4], NULL, 10) : 1;
    shared->seed = strtoull(arguments[2], NULL, 10);
    shared->random = (shared->seed + 1) * 0x9e3779b97f4a7c15;
    shared->goal = strtoull(arguments[3], NULL, 10);
    shared->processes = processes < 1 ? 1 : processes > PROCESSES ? PROCESSES : processes;
    me = PROCESSES;
    if (strlen(arguments[1]) + 5 > sizeof shared->path)
        return 2;
    strcpy(shared->path, arguments[1]);
    sigset_t waited;
    sigemptyset(&waited);
    sigaddset(&waited, SIGCHLD);
    sigaddset(&waited, SIGTERM);
    CHECK(sigprocmask(SIG_BLOCK, &waited, NULL) == 0);
    create(shared->path);
    while (shared->done < shared->goal)
        generation(&waited);
    printf("right: %llu operations, %u generations, length %llu\n", (unsigned long long)shared->done,
        shared->generation, (unsigned long long)shared->files[shared->current].len);
    return 0;
}

static void map_model(int fd) {
    model_fd = fd;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared == MAP_FAILED) {
        perror("the model");
        _exit(2);
    }
}

int main(int count, char **arguments) {
    bool works = count == 4 && strcmp(arguments[1], "--work") == 0;
    bool is_program = count == 4 && strcmp(arguments[1], "--program") == 0;
    if (works || is_program) {
        map_model(atoi(arguments[2]));
        if (is_program)
            return be_program(arguments[3]);
        me = atoi(arguments[3]);
        return work();
    }
    if (count < 4 || count > 5) {
        fprintf(stderr, "usage: exerciser PATH SEED OPERATIONS [PROCESSES]\n");
        return 2;
    }
    int fd = memfd_create("model", 0);
    if (fd < 0 || ftruncate(fd, sizeof *shared)) {
        perror("the model");
        return 2;
    }
    map_model(fd);
    return start(arguments);
}
