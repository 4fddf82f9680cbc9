/* Operations by mappings: loads and stores, by the program and by system calls, where there is something and where there is nothing. */
#include <setjmp.h>
#include <sys/uio.h>

#include "exerciser.h"

struct map maps[MAPS];
unsigned map_count;
pthread_rwlock_t maps_lock = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
unsigned char buffer[LARGEST] __attribute__((aligned(4096))), other_buffer[LARGEST] __attribute__((aligned(4096)));

static __thread sigjmp_buf jump;
static __thread volatile int armed;
static __thread void *volatile fault_address;

static void on_signal(int number, siginfo_t *info, void *context) {
    (void)context;
    fault_address = info->si_addr;
    if (!armed)
        fail("signal %d outside of an access, at %p", number, info->si_addr);
    armed = 0;
    siglongjmp(jump, number);
}

void watch_signals(void) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_NODEFER};
    CHECK(sigaction(SIGBUS, &action, NULL) == 0 && sigaction(SIGSEGV, &action, NULL) == 0);
}

/* Copies, and gives the signal that came of it, or 0. */
__attribute__((noinline)) int guarded_copy(void *to, const void *from, uint64_t n) {
    int number = sigsetjmp(jump, 0);
    if (number)
        return number;
    armed = 1;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    memcpy(to, from, n);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    armed = 0;
    return 0;
}

/* The same, of an addition in one step: what was there before. */
__attribute__((noinline)) int guarded_add(uint64_t *at, uint64_t number, uint64_t *before) {
    int signal = sigsetjmp(jump, 0);
    if (signal)
        return signal;
    armed = 1;
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    *before = __atomic_fetch_add(at, number, __ATOMIC_SEQ_CST);
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    armed = 0;
    return 0;
}

/* Whether there is a page, and not a SIGBUS. */
bool accessible(const struct map *map, uint64_t page) {
    return map->first + page < pages_of(shared->files[map->file].len);
}

/* The private copy of a page, if there is one. */
struct copy *copy_of(const struct map *map, uint64_t page) {
    struct copy *copy = map->copies ? map->copies[page] : NULL;
    if (copy && copy->cuts != shared->files[map->file].cuts[map->first + page]) {
        free(copy);
        map->copies[page] = copy = NULL;
    }
    return copy;
}

/* A page of a private mapping becomes a copy. */
void private_page(struct map *map, uint64_t page) {
    if (map->shared || copy_of(map, page))
        return;
    struct file *of = &shared->files[map->file];
    struct copy *copy = malloc(sizeof *copy);
    CHECK(copy);
    copy->cuts = of->cuts[map->first + page];
    memcpy(copy->bytes, of->bytes + (map->first + page) * PAGE, PAGE);
    map->copies[page] = copy;
}

struct map *some_map(bool for_writing) {
    unsigned start = map_count ? below(map_count) : 0;
    for (unsigned i = 0; i < map_count; i++) {
        struct map *map = &maps[(start + i) % map_count];
        if (map->protection & (for_writing ? PROT_WRITE : PROT_READ))
            return map;
    }
    return NULL;
}

/* Some bytes of a mapping that are there: where they begin in it, and how many. */
static bool span(bool for_writing, struct map **found, uint64_t *at, uint64_t *n) {
    struct map *map = some_map(for_writing);
    if (!map)
        return false;
    uint64_t len = shared->files[map->file].len, start = map->first * PAGE;
    // Nobody stores into the rest of the last page, but for copies: what becomes of that depends on when it is written back.
    uint64_t there = for_writing && map->shared ? len : pages_of(len) * PAGE;
    if (there > start + map->pages * PAGE)
        there = start + map->pages * PAGE;
    if (there <= start)
        return false;
    uint64_t offset = some_offset(map->file);
    if (offset < start || offset >= there)
        offset = start + offset % (there - start);
    *found = map;
    *at = offset - start;
    if (*n > there - offset)
        *n = there - offset;
    return true;
}

bool span_to_read(struct map **map, uint64_t *at, uint64_t *n) {
    return span(false, map, at, n);
}

bool span_to_write(struct map **map, uint64_t *at, uint64_t *n) {
    return span(true, map, at, n);
}

void before_store(const struct map *map, uint64_t at, uint64_t n) {
    uint64_t start = map->first * PAGE + at;
    if (map->shared)
        begin_change(map->file, start, start + n);
}

void after_store(struct map *map, uint64_t at, const unsigned char *bytes, uint64_t n) {
    uint64_t start = map->first * PAGE + at;
    if (map->shared) {
        model_write(map->file, start, bytes, n);
        end_change(map->file, start, start + n);
        return;
    }
    while (n) {
        uint64_t page = at / PAGE, in = at % PAGE, part = PAGE - in < n ? PAGE - in : n;
        private_page(map, page);
#if CANARY != 3
        memcpy(map->copies[page]->bytes + in, bytes, part);
#endif
        at += part, bytes += part, n -= part;
    }
}

/* Whether bytes that were found are those of a mapping, by the model. */
static void compare_map(const unsigned char *found, const struct map *map, uint64_t at, uint64_t n) {
    while (n) {
        uint64_t page = at / PAGE, in = at % PAGE, part = PAGE - in < n ? PAGE - in : n;
        const struct copy *copy = copy_of(map, page);
        if (!copy)
            compare(found, map->file, map->first * PAGE + at, part, map->shared ? "a shared map" : "a private map");
        else if (memcmp(found, copy->bytes + in, part))
            fail("a private copy differs: page %llu of file %d, bytes %llu to %llu, at %p",
                (unsigned long long)(map->first + page), map->file, (unsigned long long)in,
                (unsigned long long)(in + part), (void *)(map->at + at));
        at += part, found += part, n -= part;
    }
}

void check_load(const struct map *map, uint64_t at, uint64_t n) {
    while (n) {
        uint64_t part = n < LARGEST ? n : LARGEST;
        int number = guarded_copy(buffer, map->at + at, part);
        if (number)
            fail("signal %d at a load of %llu bytes at %p, page %llu of file %d: address %p", number,
                (unsigned long long)part, (void *)(map->at + at), (unsigned long long)(map->first + at / PAGE),
                map->file, fault_address);
        compare_map(buffer, map, at, part);
        at += part, n -= part;
    }
}

/* A few bytes in some places of all mappings. */
void check_maps(unsigned spots) {
    for (unsigned i = 0; i < map_count; i++) {
        if (!(maps[i].protection & PROT_READ))
            continue;
        for (unsigned spot = 0; spot < spots; spot++) {
            uint64_t page = below(maps[i].pages);
            if (accessible(&maps[i], page))
                check_load(&maps[i], page * PAGE + below(PAGE - 64), 64);
        }
    }
}

/* What has just changed, by another mapping. */
void look_elsewhere(int file, uint64_t at, uint64_t n) {
    const struct map *map = NULL;
    for (unsigned i = 0, from = below(MAPS); i < MAPS && !map; i++) {
        const struct map *other = &maps[(from + i) % MAPS];
        if ((from + i) % MAPS < map_count && other->file == file && other->protection & PROT_READ)
            map = other;
    }
    if (!map || one_in(2))
        return;
    uint64_t start = map->first * PAGE, end = start + map->pages * PAGE;
    uint64_t there = pages_of(shared->files[file].len) * PAGE;
    uint64_t from = at < start ? start : at, to = at + n < end ? at + n : end;
    to = to < there ? to : there;
    if (from < to)
        check_load(map, from - start, to - from < LARGEST ? to - from : LARGEST);
}

void load(void) {
    struct map *map;
    uint64_t at, n = some_len();
    if (!span_to_read(&map, &at, &n))
        return;
    note("load %llu of file %d from %p, at %llu", (unsigned long long)n, map->file, (void *)map->at,
        (unsigned long long)(map->first * PAGE + at));
    check_load(map, at, n);
}

void store(void) {
    struct map *map;
    uint64_t at, n = some_len();
    if (!span_to_write(&map, &at, &n))
        return;
    note("store %llu of file %d into %p (%s), at %llu", (unsigned long long)n, map->file, (void *)map->at,
        map->shared ? "shared" : "private", (unsigned long long)(map->first * PAGE + at));
    fill(buffer, n);
    before_store(map, at, n);
    int number = guarded_copy(map->at + at, buffer, n);
    if (number)
        fail("signal %d at a store: address %p", number, fault_address);
    int file = map->file;
    uint64_t start = map->first * PAGE + at;
    after_store(map, at, buffer, n);
    if (map->shared)
        look_elsewhere(file, start, n);
}

/* Reads, changes and writes in one. */
void add(void) {
    struct map *map;
    uint64_t at, n = 8, number = below(1ull << 60), before, expected;
    if (!span_to_write(&map, &at, &n) || n < 8)
        return;
    at = at / 8 * 8;
    uint64_t page = at / PAGE, start = map->first * PAGE + at;
    if (map->shared && start + 8 > shared->files[map->file].len)
        return;
    note("add to file %d by %p (%s), at %llu", map->file, (void *)map->at, map->shared ? "shared" : "private",
        (unsigned long long)start);
    const struct copy *copy = copy_of(map, page);
    memcpy(&expected, copy ? copy->bytes + at % PAGE : shared->files[map->file].bytes + start, 8);
    before_store(map, at, 8);
    int signal = guarded_add((uint64_t *)(map->at + at), number, &before);
    if (signal || before != expected)
        fail("an addition: signal %d, expected %#llx, found %#llx", signal, (unsigned long long)expected,
            (unsigned long long)before);
    number += before;
    after_store(map, at, (unsigned char *)&number, 8);
}

/* A pipe of the process's own. */
static const int *own_pipe(void) {
    static int ends[2] = {-1, -1};
    if (ends[0] < 0)
        CHECK(pipe2(ends, O_CLOEXEC) == 0);
    return ends;
}

/* Pages behind the last one of the file raise SIGBUS, and system calls fail. */
void past_the_end(void) {
    bool writes = one_in(3);
    struct map *map = some_map(writes);
    if (!map || accessible(map, map->pages - 1))
        return;
    uint64_t there = pages_of(shared->files[map->file].len);
    uint64_t page = there > map->first ? there - map->first : 0;
    if (one_in(2))
        page += below(map->pages - page);
    unsigned char *at = map->at + page * PAGE + (one_in(2) ? 0 : below(PAGE)), byte = 1;
    note("past the end of file %d: page %llu by %p, %s", map->file, (unsigned long long)(map->first + page),
        (void *)map->at, writes ? "store" : "load");
    if (one_in(4)) {
        ssize_t written = write(own_pipe()[1], at, 1);
        CHECK(written == -1 && errno == EFAULT);
        return;
    }
    int number = writes ? guarded_copy(at, &byte, 1) : guarded_copy(&byte, at, 1);
    if (number != SIGBUS || fault_address != at)
        fail("past the end: signal %d, address %p, accessed %p", number, fault_address, (void *)at);
}

/* What the protection does not allow raises SIGSEGV. */
void forbidden(void) {
    if (!map_count)
        return;
    struct map *map = &maps[below(map_count)];
    if (map->protection & PROT_WRITE)
        return;
    bool loads = map->protection == PROT_NONE && one_in(2);
    uint64_t page = below(map->pages);
    unsigned char *at = map->at + page * PAGE + below(PAGE), byte = 1;
    note("forbidden %s, page %llu by %p", loads ? "load" : "store", (unsigned long long)page, (void *)map->at);
    int number = loads ? guarded_copy(&byte, at, 1) : guarded_copy(at, &byte, 1);
    if (number != SIGSEGV || fault_address != at)
        fail("forbidden: signal %d, address %p, accessed %p", number, fault_address, (void *)at);
}

/* System calls take what is mapped, and bring what is to be stored: by a pipe, or as from another process. */
void by_system_calls(void) {
    struct map *map;
    bool writes = one_in(2);
    uint64_t at, n = 1 + below(3 * PAGE);
    if (!(writes ? span_to_write : span_to_read)(&map, &at, &n))
        return;
    bool by_process = one_in(3);
    note("%s a %s, %llu of file %d by %p (%s), at %llu", writes ? "from" : "into", by_process ? "process" : "pipe",
        (unsigned long long)n, map->file, (void *)map->at, map->shared ? "shared" : "private",
        (unsigned long long)(map->first * PAGE + at));
    struct iovec own = {buffer, n}, mapped = {map->at + at, n};
    if (by_process && writes) {
        fill(buffer, n);
        before_store(map, at, n);
        CHECK(process_vm_writev(getpid(), &own, 1, &mapped, 1, 0) == (ssize_t)n);
        after_store(map, at, buffer, n);
    } else if (by_process) {
        CHECK(process_vm_readv(getpid(), &own, 1, &mapped, 1, 0) == (ssize_t)n);
        compare_map(buffer, map, at, n);
    } else if (writes) {
        fill(buffer, n);
        CHECK(write(own_pipe()[1], buffer, n) == (ssize_t)n);
        before_store(map, at, n);
        CHECK(read(own_pipe()[0], map->at + at, n) == (ssize_t)n);
        after_store(map, at, buffer, n);
    } else {
        CHECK(write(own_pipe()[1], map->at + at, n) == (ssize_t)n);
        CHECK(read(own_pipe()[0], buffer, n) == (ssize_t)n);
        compare_map(buffer, map, at, n);
    }
}

static void sync_part(int flags) {
    if (!map_count)
        return;
    struct map *map = &maps[below(map_count)];
    uint64_t page = below(map->pages), n = 1 + below(map->pages - page);
    note("msync %p, %llu pages of file %d from %llu, flags %d", (void *)map->at, (unsigned long long)n, map->file,
        (unsigned long long)(map->first + page), flags);
    CHECK(msync(map->at + page * PAGE, n * PAGE, flags) == 0);
}

void sync_map(void) {
    sync_part(one_in(4) ? MS_SYNC | MS_INVALIDATE : MS_SYNC);
}

void sync_map_soon(void) {
    sync_part(one_in(2) ? MS_ASYNC : MS_INVALIDATE);
}

void in_core(void) {
    if (!map_count)
        return;
    struct map *map = &maps[below(map_count)];
    static unsigned char pages[PAGES + 1024];
    note("mincore %p", (void *)map->at);
    CHECK(mincore(map->at, map->pages * PAGE, pages) == 0);
    CHECK(mincore(map->at + 1, PAGE, pages) == -1 && errno == EINVAL);
}
