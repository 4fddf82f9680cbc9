/* Programs that map a file of hundreds of megabytes, several at a time and in several ways. Each page tells its own number, and is made of it: what any of
 * them reads is right or wrong by itself. */
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "file.h"

/* Some regions of 2 MiB, and a part of one that ends inside a page. */
static const size_t whole = 157286520, pages = 38401;

enum { WORDS = PAGE / 8, PROCESSES = 3, THREADS = 3 };

static uint64_t word_of(uint64_t page, uint64_t word) {
    uint64_t x = (page << 9 | word) * 0x9e3779b97f4a7c15u;
    return word == 0 ? page : x ^ x >> 29;
}

static void write_file(void) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    static uint64_t part[256][WORDS];
    CHECK(fd >= 0);
    for (size_t page = 0; page < pages; page += 256) {
        for (size_t at = 0; at < 256; at++)
            for (size_t word = 0; word < WORDS; word++) part[at][word] = word_of(page + at, word);
        size_t bytes = whole - page * PAGE < sizeof part ? whole - page * PAGE : sizeof part;
        CHECK(write(fd, part, bytes) == (ssize_t)bytes);
    }
    CHECK(fdatasync(fd) == 0 && posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0 && close(fd) == 0);
}

/* All of a page, of the last one what there is. */
static void page_is(const uint64_t *map, size_t page) {
    size_t words = page + 1 < pages ? WORDS : (whole - page * PAGE) / 8;
    for (size_t word = 0; word < words; word++) CHECK(map[page * WORDS + word] == word_of(page, word));
}

static uint64_t *map_file(int protection, int flags) {
    int fd = open_file(O_RDONLY);
    uint64_t *map = mmap(NULL, whole, protection, flags, fd, 0);
    CHECK(len == whole && map != MAP_FAILED && close(fd) == 0);
    return map;
}

struct walk {
    const uint64_t *map;
    unsigned seed;
};

/* In order, backwards, by strides, at random, and a few again and again: by what the seed says. */
static void *walk(void *of) {
    const struct walk *walk = of;
    uint64_t x = walk->seed * 2654435761u + 88172645463325252u;
    switch (walk->seed % 5) {
    case 0:
        for (size_t page = 0; page < pages; page++) page_is(walk->map, page);
        break;
    case 1:
        for (size_t page = pages; page-- > 0;) page_is(walk->map, page);
        break;
    case 2:
        for (size_t page = walk->seed; page < pages; page += 7) page_is(walk->map, page);
        break;
    default:
        for (int times = 0; times < 6000; times++) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            page_is(walk->map, walk->seed % 5 == 3 ? x % pages : x % 512 * 5);
        }
    }
    return NULL;
}

static void walk_in_threads(const uint64_t *map, unsigned seed) {
    pthread_t threads[THREADS];
    struct walk walks[THREADS];
    for (unsigned thread = 0; thread < THREADS; thread++) {
        walks[thread] = (struct walk){map, seed + thread};
        CHECK(pthread_create(&threads[thread], NULL, walk, &walks[thread]) == 0);
    }
    for (unsigned thread = 0; thread < THREADS; thread++) CHECK(pthread_join(threads[thread], NULL) == 0);
}

/* Each goes twice through its map; who writes does so while all of them are at it, and before any of them has ended. */
static void in_processes(int writes) {
    pid_t children[PROCESSES];
    int begun[2], written[2];
    char byte = 0;
    CHECK(pipe(begun) == 0 && pipe(written) == 0);
    for (unsigned process = 0; process < PROCESSES; process++)
        if ((children[process] = fork()) == 0) {
            CHECK(close(written[1]) == 0);
            uint64_t *map = map_file(PROT_READ, process ? MAP_SHARED : MAP_PRIVATE);
            page_is(map, 0);
            CHECK(write(begun[1], &byte, 1) == 1);
            walk_in_threads(map, process * THREADS);
            CHECK(read(written[0], &byte, 1) == 0); /* the end of it */
            walk_in_threads(map, process * THREADS + 4);
            CHECK(munmap(map, len) == 0);
            _exit(0);
        }
    if (writes) { /* what is there already */
        for (unsigned process = 0; process < PROCESSES; process++) CHECK(read(begun[0], &byte, 1) == 1);
        int fd = open(path, O_RDWR);
        uint64_t part[WORDS];
        for (size_t page = 3; page + 1 < pages; page += pages / 50) {
            for (size_t word = 0; word < WORDS; word++) part[word] = word_of(page, word);
            CHECK(pwrite(fd, part, PAGE, page * PAGE) == PAGE);
        }
        CHECK(fd >= 0 && close(fd) == 0);
    }
    CHECK(close(written[1]) == 0);
    for (unsigned process = 0; process < PROCESSES; process++) {
        int status;
        CHECK(waitpid(children[process], &status, 0) == children[process] && status == 0);
    }
}

static void in_order(void) {
    const uint64_t *map = map_file(PROT_READ, MAP_SHARED);
    for (size_t page = 0; page < pages; page++) page_is(map, page);
}

/* Of a private map some pages are the program's own. */
static void copies(void) {
    uint64_t *map = map_file(PROT_READ | PROT_WRITE, MAP_PRIVATE);
    for (size_t page = 5; page + 1 < pages; page += 97) map[page * WORDS + 7] = page;
    for (size_t page = 0; page < pages; page++)
        if (page % 97 == 5 && page + 1 < pages)
            CHECK(map[page * WORDS + 7] == page && map[page * WORDS + 8] == word_of(page, 8));
        else
            page_is(map, page);
}

/* What system calls are handed. */
static void calls(void) {
    uint64_t *map = map_file(PROT_READ, MAP_SHARED);
    int out = open("/dev/null", O_WRONLY), copy = open("copy", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(write(copy, map, len / 2) == (ssize_t)(len / 2) && write(out, map, len) == (ssize_t)len);
    static uint64_t page[WORDS];
    for (size_t at = 0; at < pages / 2; at += 61) {
        CHECK(pread(copy, page, PAGE, at * PAGE) == PAGE);
        CHECK(memcmp(page, map + at * WORDS, PAGE) == 0 && page[0] == at);
    }
    CHECK(unlink("copy") == 0);
}

int main(int count, char **arguments) {
    CHECK(count == 3);
    const char *what = arguments[1];
    path = arguments[2];
    if (strcmp(what, "make") == 0) write_file();
    else if (strcmp(what, "readers") == 0) in_processes(0);
    else if (strcmp(what, "writer") == 0) in_processes(1);
    else if (strcmp(what, "order") == 0) in_order();
    else if (strcmp(what, "copies") == 0) copies();
    else if (strcmp(what, "calls") == 0) calls();
    else return 2;
    puts("right");
    return 0;
}
