/* Durability: commits, rollbacks, snapshots, what a killed program leaves, closing without changes, scratch files. */
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "check.h"

#define LENGTH (20 * PAGE)
#define JOURNAL(name) name ".mapwright-journal"

static mapwright_options *with(int durability) {
    mapwright_options *options = make_options(4 << 20);
    OK(mapwright_options_set_durability(options, durability));
    return options;
}

/* The same text in two pages: a commit has both, or none. */
static void put(mapwright_map *map, const char *text) {
    OK(mapwright_map_write_at(map, 10, text, strlen(text)));
    OK(mapwright_map_write_at(map, 10 * PAGE, text, strlen(text)));
}

static int has(mapwright_map *map, const char *text) {
    char first[16], second[16];
    OK(mapwright_map_read_at(map, 10, first, strlen(text)));
    OK(mapwright_map_read_at(map, 10 * PAGE, second, strlen(text)));
    return memcmp(first, text, strlen(text)) == 0 && memcmp(second, text, strlen(text)) == 0;
}

static int in_file(const char *name, const char *text) {
    return file_has(name, 10, text, strlen(text)) && file_has(name, 10 * PAGE, text, strlen(text));
}

/* What the program does when it is run to be killed. */
static int be_killed(void) {
    mapwright_map *map;
    OK(mapwright_map_open_mut("killed", with(MAPWRIGHT_DURABILITY_ATOMIC), &map));
    put(map, "committed");
    OK(mapwright_map_commit(map));
    put(map, "abandoned");
    return raise(SIGKILL);
}

/* A program that is killed: the next that opens the file for writing finds the last commit. */
static void killed(const char *program) {
    make_file("killed", LENGTH);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        execl(program, program, "be killed", (char *)NULL); /* not under valgrind, if this is */
        _exit(127);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    CHECK(access(JOURNAL("killed"), F_OK) == 0 && !in_file("killed", "committed"));
    mapwright_options *options = make_options(4 << 20);
    mapwright_map *map;
    FAILS(MAPWRIGHT_ERR_UNRECOVERED, mapwright_map_open("killed", options, &map));
    CHECK(map == NULL && strstr(mapwright_last_error(), JOURNAL("killed")) != NULL);
    OK(mapwright_map_open_mut("killed", options, &map)); /* with any durability */
    CHECK(has(map, "committed"));
    OK(mapwright_map_close(map));
    CHECK(access(JOURNAL("killed"), F_OK) != 0 && in_file("killed", "committed"));
    OK(mapwright_map_open("killed", options, &map));
    CHECK(has(map, "committed"));
    OK(mapwright_map_close(map));
    OK(mapwright_options_close(options));
}

static void commits(mapwright_options *options) {
    mapwright_map *map;
    OK(mapwright_map_open_mut(make_file("file", LENGTH), options, &map));
    put(map, "one");
    OK(mapwright_map_commit(map));
    OK(mapwright_map_commit(map)); /* nothing has changed */
    CHECK(access(JOURNAL("file"), F_OK) == 0 && !in_file("file", "one"));
    put(map, "two");
    CHECK(has(map, "two"));
    OK(mapwright_map_rollback(map));
    CHECK(has(map, "one"));

    /* Length too. */
    void *data, *moved;
    OK(mapwright_map_data(map, &data, NULL));
    OK(mapwright_map_resize(map, 30 * PAGE));
    OK(mapwright_map_write_at(map, 25 * PAGE, "far", 3));
    OK(mapwright_map_rollback(map));
    CHECK(mapwright_map_length(map) == LENGTH);
    OK(mapwright_map_data(map, &moved, NULL));
    CHECK(data == moved);

    /* An address that was given out before a commit is good after it. */
    for (char digit = '0'; digit < '4'; digit++) {
        ((char *)data)[3 * PAGE] = digit;
        OK(mapwright_map_commit(map));
    }
    ((char *)data)[3 * PAGE] = 'x';
    OK(mapwright_map_rollback(map));
    CHECK(((char *)data)[3 * PAGE] == '3');

    mapwright_pin *pin;
    OK(mapwright_map_get(map, 0, PAGE, &pin, NULL));
    put(map, "three");
    FAILS(-EBUSY, mapwright_map_rollback(map));
    FAILS(-EBUSY, mapwright_map_abandon(map));
    OK(mapwright_map_commit(map));
    OK(mapwright_pin_release(pin));
    put(map, "four");
    OK(mapwright_map_flush(map, 0, PAGE)); /* commits all of it */
    OK(mapwright_map_rollback(map));
    CHECK(has(map, "four"));
    put(map, "five!");
    OK(mapwright_map_close(map)); /* commits too */
    CHECK(access(JOURNAL("file"), F_OK) != 0 && in_file("file", "five!"));

    OK(mapwright_map_open_mut("file", options, &map));
    put(map, "six");
    OK(mapwright_map_commit(map));
    put(map, "seven");
    OK(mapwright_map_resize(map, PAGE));
    OK(mapwright_map_abandon(map));
    FAILS(-EBADF, mapwright_map_abandon(map));
    CHECK(access(JOURNAL("file"), F_OK) != 0 && in_file("file", "six") && file_length("file") == LENGTH);
}

static void snapshots(mapwright_options *options) {
    mapwright_map *map, *before, *after;
    OK(mapwright_map_open_mut(make_file("snapshot", LENGTH), options, &map));
    put(map, "one");
    OK(mapwright_map_commit(map));
    put(map, "two");
    OK(mapwright_map_snapshot(map, NULL, &before));
    OK(mapwright_map_resize(map, 2 * LENGTH));
    OK(mapwright_map_commit(map));
    OK(mapwright_map_snapshot(map, options, &after));
    CHECK(has(map, "two") && has(before, "one") && has(after, "two"));
    CHECK(mapwright_map_length(before) == LENGTH && mapwright_map_length(after) == 2 * LENGTH);
    unsigned char byte;
    OK(mapwright_map_read_at(before, 7 * PAGE, &byte, 1));
    CHECK(byte == byte_at(7 * PAGE));
    FAILS(-EACCES, mapwright_map_write_at(before, 0, "x", 1));
    FAILS(-EACCES, mapwright_map_snapshot(before, NULL, &(mapwright_map *){NULL}));
    OK(mapwright_map_close(after));

    OK(mapwright_map_close(map)); /* the other first */
    CHECK(has(before, "one"));
    FAILS(-EBUSY, mapwright_map_open_mut("snapshot", options, &map));
    OK(mapwright_map_close(before));
    OK(mapwright_map_open_mut("snapshot", options, &map));
    CHECK(has(map, "two"));

    mapwright_options *kernel = make_options(1 << 20);
    OK(mapwright_options_set_strategy(kernel, MAPWRIGHT_STRATEGY_KERNEL));
    FAILS(-EINVAL, mapwright_map_snapshot(map, kernel, &before));
    CHECK(before == NULL);
    FAILS(-EFAULT, mapwright_map_snapshot(map, kernel, NULL));
    OK(mapwright_options_close(kernel));
    OK(mapwright_map_close(map));
}

static void *commit_a_page(void *argument) {
    void **of = argument;
    char page[PAGE];
    size_t number = *(size_t *)of[1];
    for (int round = 0; round < 10; round++) {
        memset(page, 'a' + round, sizeof page);
        OK(mapwright_map_overwrite(of[0], number * PAGE, page, sizeof page));
        OK(mapwright_map_commit(of[0]));
    }
    return NULL;
}

static void threads(mapwright_options *options) {
    mapwright_map *map;
    pthread_t threads[4];
    size_t numbers[4];
    void *of[4][2];
    OK(mapwright_map_open_mut(make_file("threads", LENGTH), options, &map));
    for (size_t i = 0; i < 4; i++) {
        numbers[i] = 3 * i;
        of[i][0] = map, of[i][1] = &numbers[i];
        CHECK(pthread_create(&threads[i], NULL, commit_a_page, of[i]) == 0);
    }
    for (size_t i = 0; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    OK(mapwright_map_abandon(map)); /* all is committed */
    for (size_t i = 0; i < 4; i++) CHECK(file_has("threads", (3 * i + 1) * PAGE - 2, "jj", 2));
}

/* No room for the journal: the commit fails and says so, nothing is lost, and what is taken back is taken back. */
static void full(mapwright_options *options) {
    mapwright_map *map;
    struct rlimit before, none;
    OK(mapwright_map_open_mut(make_file("full", LENGTH), options, &map));
    put(map, "one");
    OK(mapwright_map_commit(map));
    put(map, "two");
    CHECK(signal(SIGXFSZ, SIG_IGN) != SIG_ERR && getrlimit(RLIMIT_FSIZE, &before) == 0);
    none = before;
    none.rlim_cur = 1;
    CHECK(setrlimit(RLIMIT_FSIZE, &none) == 0);
    FAILS(-EFBIG, mapwright_map_commit(map));
    CHECK(setrlimit(RLIMIT_FSIZE, &before) == 0);
    FAILS(MAPWRIGHT_ERR_LATCHED, mapwright_map_commit(map));
    CHECK(mapwright_map_acknowledge(map) == 1 && has(map, "two"));
    OK(mapwright_map_commit(map));
    put(map, "three");
    CHECK(setrlimit(RLIMIT_FSIZE, &none) == 0);
    FAILS(-EFBIG, mapwright_map_commit(map));
    CHECK(setrlimit(RLIMIT_FSIZE, &before) == 0);
    OK(mapwright_map_rollback(map)); /* takes note of the failure as well */
    CHECK(has(map, "two"));
    OK(mapwright_map_close(map));
    CHECK(in_file("full", "two"));
}

static void scratch(void) {
    mapwright_options *options = with(MAPWRIGHT_DURABILITY_NONE);
    mapwright_map *map;
    OK(mapwright_map_open_mut(make_file("scratch", LENGTH), options, &map));
    put(map, "one");
    OK(mapwright_map_flush(map, 0, 0));
    CHECK(in_file("scratch", "one"));
    put(map, "two");
    FAILS(-EINVAL, mapwright_map_commit(map));
    OK(mapwright_map_abandon(map));
    CHECK(in_file("scratch", "one"));
    OK(mapwright_map_open_mut("scratch", options, &map));
    put(map, "three");
    OK(mapwright_map_close(map)); /* writes it */
    CHECK(in_file("scratch", "three"));
    OK(mapwright_options_close(options));
}

static void refused(mapwright_options *atomic) {
    mapwright_options *flush = make_options(1 << 20);
    mapwright_map *map;
    FAILS(-EINVAL, mapwright_options_set_durability(flush, 3));
    OK(mapwright_options_set_durability(flush, MAPWRIGHT_DURABILITY_FLUSH));
    OK(mapwright_map_open_mut(make_file("refused", LENGTH), flush, &map));
    FAILS(-EINVAL, mapwright_map_commit(map));
    FAILS(-EINVAL, mapwright_map_rollback(map));
    FAILS(-EINVAL, mapwright_map_snapshot(map, NULL, &(mapwright_map *){NULL}));
    FAILS(-EINVAL, mapwright_map_abandon(map));
    OK(mapwright_map_close(map)); /* it was still open */
    FAILS(-EBADF, mapwright_map_commit(map));
    FAILS(-EBADF, mapwright_map_rollback(map));
    FAILS(-EFAULT, mapwright_map_commit(NULL));
    OK(mapwright_map_open("refused", flush, &map));
    FAILS(-EACCES, mapwright_map_commit(map));
    FAILS(-EACCES, mapwright_map_rollback(map));
    FAILS(-EACCES, mapwright_map_abandon(map));
    OK(mapwright_map_close(map));

    FAILS(-EINVAL, mapwright_mmap_options(atomic));
    CHECK(link("refused", "second name") == 0);
    FAILS(MAPWRIGHT_ERR_JOURNAL, mapwright_map_open_mut("refused", atomic, &map));
    CHECK(unlink("second name") == 0);
    OK(mapwright_options_set_strategy(atomic, MAPWRIGHT_STRATEGY_KERNEL));
    FAILS(-EINVAL, mapwright_map_open_mut("refused", atomic, &map));
    OK(mapwright_options_close(flush));
}

int main(int count, char **argument) {
    if (count > 1) return be_killed();
    killed(argument[0]);
    mapwright_options *options = with(MAPWRIGHT_DURABILITY_ATOMIC);
    commits(options);
    snapshots(options);
    threads(options);
    full(options);
    scratch();
    refused(options);
    OK(mapwright_options_close(options));
    puts("durability: ok");
    return 0;
}
