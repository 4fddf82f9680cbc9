/* Threads that store into one mapping at the same time, while the first one does what may take pages away from them. */
#include <sys/wait.h>

#include "exerciser.h"

#define THREADS 3
/* Of a private mapping, whose pages all become copies. */
#define MOST_PRIVATE 64

static struct {
    struct map map;
    uint64_t pages, additions;
} storm;

static struct stormer {
    pthread_t thread;
    unsigned number;
    uint64_t random;
} stormers[THREADS];

/* The model's word. */
static uint64_t *expected_word(uint64_t at) {
    const struct copy *copy = storm.map.shared ? NULL : storm.map.copies[at / PAGE];
    unsigned char *byte = shared->files[storm.map.file].bytes + storm.map.first * PAGE + at;
    return (uint64_t *)(copy ? (unsigned char *)copy->bytes + at % PAGE : byte);
}

/* Adds to words of its own, which others have beside them, and knows what they were before. */
static void *add_at_random(void *argument) {
    struct stormer *own = argument;
    for (uint64_t i = 0; i < storm.additions; i++) {
        own->random = own->random * 6364136223846793005 + 1442695040888963407;
        uint64_t page = (own->random >> 33) % storm.pages, word = (own->random >> 20) % (PAGE / 8 / THREADS);
        if (!storm.map.shared && i < storm.pages)
            page = i; // each at least once
        uint64_t at = page * PAGE + (word * THREADS + own->number) * 8, found;
        uint64_t *expected = expected_word(at);
        int number = guarded_add((uint64_t *)(storm.map.at + at), own->random, &found);
        if (number || found != *expected)
            fail("one of many threads, %p, byte %llu of file %d: signal %d, expected %#llx, found %#llx",
                (void *)(storm.map.at + at), (unsigned long long)(storm.map.first * PAGE + at), storm.map.file, number,
                (unsigned long long)*expected, (unsigned long long)found);
        *expected = found + own->random;
    }
    return NULL;
}

static void open_and_close(void) {
    int fd = open(shared->path, shared->phase == READERS || one_in(2) ? O_RDONLY : O_RDWR);
    CHECK(fd >= 0 && close(fd) == 0);
}

static void fork_and_wait(void) {
    int status;
    pid_t pid = one_in(2) ? fork() : vfork();
    if (pid == 0)
        _exit(0);
    CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && status == 0);
}

static void read_a_little(void) {
    const struct descriptor *by = some_descriptor(O_RDONLY);
    if (by && !(by->flags & O_DIRECT))
        CHECK(pread(by->fd, buffer, 64, 0) >= 0);
}

static void grow(void) {
    struct file *of = &shared->files[shared->current];
    uint64_t len = of->len + below(2 * PAGE);
    if (shared->phase == READERS || len > MOST)
        return;
    bool is_other = (int)shared->current != storm.map.file; // the storm's own was said to change
    uint64_t start = of->len;
    if (is_other)
        begin_change(shared->current, start, len);
    CHECK(truncate(shared->path, len) == 0);
    model_set_len(shared->current, len);
    if (is_other)
        end_change(shared->current, start, len);
}

static void sync_all(void) {
    CHECK(msync(storm.map.at, storm.map.pages * PAGE, one_in(2) ? MS_SYNC : MS_ASYNC) == 0);
}

static void let_go(void) {
    int done = madvise(storm.map.at, storm.map.pages * PAGE, one_in(2) ? MADV_PAGEOUT : MADV_COLD);
    CHECK(done == 0 || errno == EINVAL); // an older kernel
}

static void wait_a_little(void) {
    usleep(below(300));
}

/* What the first thread does meanwhile. */
static void disturb(void) {
    static const struct {
        const char *name;
        void (*run)(void);
    } all[] = {{"opens", open_and_close}, {"forks", fork_and_wait}, {"reads", read_a_little}, {"grows", grow},
        {"syncs", sync_all}, {"lets go", let_go}, {"advises", advise_gently}, {"asks what is there", in_core},
        {"syncs a file", sync_file}, {"looks at the status", look_at_status}, {"waits", wait_a_little}};
    unsigned which = below(sizeof all / sizeof all[0]);
    note("meanwhile: %s", all[which].name);
    all[which].run();
}

/* Whole pages of a mapping that may be stored into. */
static bool begin(void) {
    const struct map *found = some_map(true);
    if (!found)
        return false;
    uint64_t there = shared->files[found->file].len / PAGE;
    storm.map = *found;
    storm.pages = there > found->first ? there - found->first : 0;
    storm.pages = storm.pages < found->pages ? storm.pages : found->pages;
    if (!found->shared && storm.pages > MOST_PRIVATE)
        storm.pages = MOST_PRIVATE;
    storm.additions = MOST_PRIVATE + below(one_in(4) ? 3000 : 300);
    for (uint64_t page = 0; !found->shared && page < storm.pages; page++)
        private_page(&storm.map, page);
    return storm.pages > 0;
}

void many_threads(void) {
    if (is_child || !begin())
        return;
    uint64_t start = storm.map.first * PAGE;
    note("threads add to file %d by %p (%s), %llu pages from %llu, %llu times", storm.map.file, (void *)storm.map.at,
        storm.map.shared ? "shared" : "private", (unsigned long long)storm.pages, (unsigned long long)storm.map.first,
        (unsigned long long)storm.additions);
    if (storm.map.shared)
        begin_change(storm.map.file, start, MOST);
    for (unsigned i = 0; i < THREADS; i++) {
        stormers[i].number = i;
        stormers[i].random = below(1ull << 60);
        CHECK(pthread_create(&stormers[i].thread, NULL, add_at_random, &stormers[i]) == 0);
    }
    for (unsigned i = below(6); i-- > 0;)
        disturb();
    for (unsigned i = 0; i < THREADS; i++)
        CHECK(pthread_join(stormers[i].thread, NULL) == 0);
    if (storm.map.shared)
        end_change(storm.map.file, start, MOST);
    for (uint64_t page = 0; page < storm.pages; page += one_in(4) ? 1 : 8)
        check_load(&storm.map, page * PAGE, PAGE);
}
