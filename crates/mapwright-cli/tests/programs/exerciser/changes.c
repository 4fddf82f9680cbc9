/* Operations that change mappings: made, unmapped, moved, protected, advised. Threads that look on wait meanwhile. */
#include "exerciser.h"

static void lock_maps(void) {
    CHECK(pthread_rwlock_wrlock(&maps_lock) == 0);
}

static void unlock_maps(void) {
    CHECK(pthread_rwlock_unlock(&maps_lock) == 0);
}

static struct copy **no_copies(bool is_shared, uint64_t pages) {
    struct copy **copies = is_shared ? NULL : calloc(pages, sizeof *copies);
    CHECK(is_shared || copies);
    return copies;
}

static void drop_copies(struct map *map, uint64_t page, uint64_t n) {
    for (uint64_t i = page; map->copies && i < page + n; i++) {
        free(map->copies[i]);
        map->copies[i] = NULL;
    }
}

/* A part becomes a mapping of its own in the list. */
static struct map part_of(const struct map *map, uint64_t page, uint64_t n) {
    struct map part = *map;
    part.at += page * PAGE;
    part.first += page;
    part.pages = n;
    part.copies = no_copies(map->shared, n);
    if (part.copies)
        memcpy(part.copies, map->copies + page, n * sizeof *part.copies);
    return part;
}

/* Splits the list's entry so that the part is one by itself: which. There must be room for two more. */
static unsigned isolate(unsigned index, uint64_t page, uint64_t n) {
    struct map whole = maps[index];
    if (page > 0)
        maps[map_count++] = part_of(&whole, 0, page);
    if (page + n < whole.pages)
        maps[map_count++] = part_of(&whole, page + n, whole.pages - page - n);
    maps[index] = part_of(&whole, page, n);
    free(whole.copies);
    return index;
}

/* Takes it off the list. */
static void forget(unsigned index) {
    drop_copies(&maps[index], 0, maps[index].pages);
    free(maps[index].copies);
    maps[index] = maps[--map_count];
}

/* Some of its pages; the whole of it often. */
static void some_part(const struct map *map, uint64_t *page, uint64_t *n) {
    *page = one_in(3) ? 0 : below(map->pages);
    *n = one_in(3) ? map->pages - *page : 1 + below(map->pages - *page);
}

struct wanted {
    uint64_t first, pages;
    int protection, flags;
};

static void populate(struct map *map) {
    for (uint64_t page = 0; map->protection & PROT_WRITE && page < map->pages; page++)
        if (accessible(map, page))
            private_page(map, page);
}

/* Maps, and puts it on the list. */
static void map_file(const struct descriptor *by, struct wanted wanted, void *hint) {
    note("mmap fd %d, file %d, %llu pages from %llu, protection %d, flags %#x, at %p", by->fd, by->file,
        (unsigned long long)wanted.pages, (unsigned long long)wanted.first, wanted.protection, wanted.flags, hint);
    uint64_t len = wanted.pages * PAGE - (one_in(3) ? below(PAGE) : 0);
    unsigned char *at = mmap(hint, len, wanted.protection, wanted.flags, by->fd, wanted.first * PAGE);
    CHECK(at != MAP_FAILED);
    bool is_shared = (wanted.flags & MAP_TYPE) != MAP_PRIVATE;
    struct map map = {.at = at, .pages = wanted.pages, .first = wanted.first, .file = by->file,
        .protection = wanted.protection, .shared = is_shared, .by_writer = (by->flags & O_ACCMODE) == O_RDWR};
    map.copies = no_copies(is_shared, wanted.pages);
    if (wanted.flags & MAP_POPULATE && !is_shared)
        populate(&map);
    maps[map_count++] = map;
}

/* What it may be mapped for. */
static struct wanted some_way(const struct descriptor *by) {
    bool is_shared = !one_in(4), may_write = !is_shared || (by->flags & O_ACCMODE) == O_RDWR;
    int protection = may_write && !one_in(4) ? PROT_READ | PROT_WRITE : PROT_READ;
    return (struct wanted){.protection = protection, .flags = is_shared ? MAP_SHARED : MAP_PRIVATE};
}

/* A map of a megabyte or more, within the file. */
void map_large(void) {
    const struct descriptor *by = some_descriptor(O_RDONLY);
    if (!by || map_count > MAPS / 2)
        return;
    uint64_t pages = pages_of(shared->files[by->file].len);
    if (pages < MIB / PAGE)
        return;
    struct wanted wanted = some_way(by);
    if (one_in(2)) {
        wanted.first = below(pages - MIB / PAGE + 1);
        wanted.pages = MIB / PAGE + below(pages - wanted.first - MIB / PAGE + 1);
    } else {
        wanted.pages = pages;
    }
    lock_maps();
    map_file(by, wanted, NULL);
    recount();
    unlock_maps();
}

/* Any map, past the end too, by all flags. */
void map_some(void) {
    if (one_in(2))
        return map_large();
    const struct descriptor *by = some_descriptor(O_RDONLY);
    if (!by || map_count > MAPS / 2)
        return;
    struct wanted wanted = some_way(by);
    uint64_t pages = pages_of(shared->files[by->file].len);
    wanted.first = one_in(2) ? 0 : below(pages + 2);
    wanted.pages = 1 + below(one_in(3) ? 40 : MIB / PAGE * 4);
    void *hint = NULL;
    if (wanted.flags == MAP_SHARED && one_in(4))
        wanted.flags = MAP_SHARED_VALIDATE;
    if (one_in(4))
        wanted.flags |= MAP_NORESERVE;
    if (one_in(6))
        wanted.flags |= MAP_POPULATE;
    if (map_count && one_in(6))
        hint = maps[0].at + below(64) * MIB;
    lock_maps();
    map_file(by, wanted, hint);
    recount();
    unlock_maps();
}

/* MAP_FIXED over a part of another one: by a file, or by nothing that is unmapped then. */
void map_over(void) {
    const struct descriptor *by = some_descriptor(O_RDONLY);
    if (!by || !map_count || map_count + 3 > MAPS)
        return;
    unsigned index = below(map_count);
    uint64_t page, n;
    some_part(&maps[index], &page, &n);
    unsigned char *at = maps[index].at + page * PAGE;
    lock_maps();
    index = isolate(index, page, n);
    forget(index);
    if (one_in(3)) {
        note("mmap of nothing over %p, %llu pages", (void *)at, (unsigned long long)n);
        void *nothing = mmap(at, n * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
        CHECK(nothing == at && munmap(at, n * PAGE) == 0);
    } else {
        struct wanted wanted = some_way(by);
        wanted.first = below(pages_of(shared->files[by->file].len) + 1);
        wanted.pages = n;
        wanted.flags |= MAP_FIXED;
        map_file(by, wanted, at);
        CHECK(maps[map_count - 1].at == at);
    }
    recount();
    unlock_maps();
}

/* What mmap(2) refuses. */
void map_refused(void) {
    if (!descriptor_count)
        return;
    const struct descriptor *by = &descriptors[below(descriptor_count)];
    int access = by->flags & O_ACCMODE;
    note("mmap fd %d, refused", by->fd);
    CHECK(mmap(NULL, 0, PROT_READ, MAP_SHARED, by->fd, 0) == MAP_FAILED && errno == EINVAL);
    CHECK(mmap(NULL, 2 * MIB, PROT_READ, MAP_SHARED, by->fd, 100) == MAP_FAILED && errno == EINVAL);
    CHECK(mmap(NULL, 2 * MIB, PROT_READ, MAP_SHARED, 999, 0) == MAP_FAILED && errno == EBADF);
    if (map_count)
        CHECK(mmap(maps[0].at, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED_NOREPLACE, by->fd, 0) == MAP_FAILED &&
            (errno == EEXIST || access == O_WRONLY));
    if (access == O_WRONLY)
        CHECK(mmap(NULL, 2 * MIB, PROT_READ, MAP_PRIVATE, by->fd, 0) == MAP_FAILED && errno == EACCES);
    if (access == O_RDONLY)
        CHECK(mmap(NULL, 2 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, by->fd, 0) == MAP_FAILED && errno == EACCES);
}

void unmap_at(unsigned index) {
    lock_maps();
    note("munmap %p, all %llu pages of file %d", (void *)maps[index].at, (unsigned long long)maps[index].pages,
        maps[index].file);
    CHECK(munmap(maps[index].at, maps[index].pages * PAGE) == 0);
    forget(index);
    recount();
    unlock_maps();
}

void unmap(void) {
    if (map_count)
        unmap_at(below(map_count));
}

void unmap_part(void) {
    if (!map_count || map_count + 2 > MAPS)
        return;
    unsigned index = below(map_count);
    uint64_t page, n;
    some_part(&maps[index], &page, &n);
    lock_maps();
    index = isolate(index, page, n);
    note("munmap %p, %llu pages of file %d", (void *)maps[index].at, (unsigned long long)n, maps[index].file);
    CHECK(munmap(maps[index].at, n * PAGE) == 0);
    forget(index);
    recount();
    unlock_maps();
}

/* An address where there is room, and nobody else's. */
static unsigned char *room_for(uint64_t pages) {
    unsigned char *room = mmap(NULL, pages * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(room != MAP_FAILED);
    return room;
}

static void resize(struct map *map, uint64_t pages) {
    if (map->copies) {
        if (pages < map->pages)
            drop_copies(map, pages, map->pages - pages);
        map->copies = realloc(map->copies, pages * sizeof *map->copies);
        CHECK(map->copies);
        for (uint64_t page = map->pages; page < pages; page++)
            map->copies[page] = NULL;
    }
    map->pages = pages;
}

/* A part of it is moved elsewhere. */
static void move_part(unsigned index) {
    uint64_t page, n;
    some_part(&maps[index], &page, &n);
    index = isolate(index, page, n);
    struct map *map = &maps[index];
    unsigned char *room = room_for(n);
    note("mremap %p, %llu pages of file %d, to %p", (void *)map->at, (unsigned long long)n, map->file, (void *)room);
    CHECK(mremap(map->at, n * PAGE, n * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, room) == room);
    map->at = room;
}

/* Made longer or shorter, in its place or elsewhere. */
static void change_len(struct map *map) {
    uint64_t pages = one_in(2) ? 1 + below(map->pages) : map->pages + below(300);
    if (map->first + pages > PAGES + 1000)
        return;
    int flags = one_in(4) ? 0 : MREMAP_MAYMOVE;
    note("mremap %p, %llu pages of file %d, to %llu pages, flags %d", (void *)map->at,
        (unsigned long long)map->pages, map->file, (unsigned long long)pages, flags);
    unsigned char *at = mremap(map->at, map->pages * PAGE, pages * PAGE, flags);
    if (at == MAP_FAILED && errno == ENOMEM && !flags) // no room behind it, which is another matter each time
        at = mremap(map->at, map->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE);
    CHECK(at != MAP_FAILED);
    map->at = at;
    resize(map, pages);
}

/* The same pages at another address as well. */
static void map_again(const struct map *map) {
    note("mremap %p, a second time", (void *)map->at);
    struct map again = *map;
    again.at = mremap(map->at, 0, map->pages * PAGE, MREMAP_MAYMOVE);
    CHECK(again.at != MAP_FAILED);
    maps[map_count++] = again;
}

void remap(void) {
    if (!map_count || map_count + 2 > MAPS)
        return;
    unsigned index = below(map_count);
    lock_maps();
    if (one_in(3))
        move_part(index);
    else if (maps[index].shared && one_in(4))
        map_again(&maps[index]);
    else
        change_len(&maps[index]);
    recount();
    unlock_maps();
}

void protect(void) {
    if (!map_count || map_count + 2 > MAPS)
        return;
    unsigned index = below(map_count);
    uint64_t page, n;
    some_part(&maps[index], &page, &n);
    unsigned char *at = maps[index].at + page * PAGE;
    int protection = one_in(6) ? PROT_NONE : one_in(2) ? PROT_READ : PROT_READ | PROT_WRITE;
    bool is_refused = protection & PROT_WRITE && maps[index].shared && !maps[index].by_writer;
    note("mprotect %p, %llu pages of file %d, to %d", (void *)at, (unsigned long long)n, maps[index].file, protection);
    lock_maps();
    if (is_refused) {
        CHECK(mprotect(at, n * PAGE, protection) == -1 && errno == EACCES);
    } else {
        CHECK(mprotect(at, n * PAGE, protection) == 0);
        if (protection != maps[index].protection)
            maps[isolate(index, page, n)].protection = protection;
    }
    unlock_maps();
}

/* What changes nothing. Of the whole map: the kernel keeps some of it for each part, which would then be no one mapping to mremap(2). */
void advise_gently(void) {
    static const int all[] = {MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_DONTDUMP, MADV_DODUMP};
    static const int posix[] = {POSIX_MADV_NORMAL, POSIX_MADV_RANDOM, POSIX_MADV_SEQUENTIAL, POSIX_MADV_WILLNEED,
        POSIX_MADV_DONTNEED};
    if (!map_count)
        return;
    const struct map *map = &maps[below(map_count)];
    unsigned which = below(12);
    note("madvise %p, file %d, %u", (void *)map->at, map->file, which);
    if (which < 6)
        CHECK(madvise(map->at, map->pages * PAGE, all[which]) == 0);
    else
        CHECK(posix_madvise(map->at, map->pages * PAGE, posix[which % 5]) == 0);
}

/* What lets go of pages, or fetches them. */
void advise(void) {
    static const int all[] = {MADV_DONTNEED, MADV_DONTNEED, MADV_PAGEOUT, MADV_COLD, MADV_FREE, MADV_POPULATE_READ,
        MADV_POPULATE_WRITE};
    struct map *map = some_map(false);
    if (!map)
        return;
    uint64_t page, n;
    some_part(map, &page, &n);
    int advice = all[below(sizeof all / sizeof all[0])];
    bool populates = advice == MADV_POPULATE_READ || advice == MADV_POPULATE_WRITE;
    if (populates && (!accessible(map, page + n - 1) || (advice == MADV_POPULATE_WRITE && !(map->protection & PROT_WRITE))))
        return;
    note("madvise %p, %llu pages of file %d from %llu, %d", (void *)map->at, (unsigned long long)n, map->file,
        (unsigned long long)(map->first + page), advice);
    int done = madvise(map->at + page * PAGE, n * PAGE, advice);
    if (advice == MADV_FREE)
        CHECK(done == -1 && errno == EINVAL); // not of files
    else if (done == -1)
        CHECK(errno == EINVAL && (populates || advice == MADV_PAGEOUT || advice == MADV_COLD)); // an older kernel
    else if (advice == MADV_DONTNEED)
        drop_copies(map, page, n);
    else if (advice == MADV_POPULATE_WRITE)
        for (uint64_t i = page; i < page + n; i++)
            private_page(map, i);
}

/* A hole in the file, by a mapping. */
void remove_part(void) {
    struct map *map = some_map(true);
    if (!map || !map->shared)
        return;
    uint64_t page, n;
    some_part(map, &page, &n);
    if (n > 64)
        n = 1 + n % 64;
    uint64_t start = (map->first + page) * PAGE, end = start + n * PAGE;
    note("MADV_REMOVE %p, %llu pages of file %d from %llu", (void *)map->at, (unsigned long long)n, map->file,
        (unsigned long long)(map->first + page));
    begin_change(map->file, start, end);
    int done = madvise(map->at + page * PAGE, n * PAGE, MADV_REMOVE);
    CHECK(done == 0 || errno == EOPNOTSUPP);
    if (done == 0 && start < MOST)
        model_zero(map->file, start, end < MOST ? end : MOST);
    end_change(map->file, start, end);
}

/* Few pages: not everybody may lock many. Writable private ones become copies by that. */
void lock_and_unlock(void) {
    struct map *map;
    uint64_t at, n = 1 + below(10 * PAGE);
    if (!span_to_read(&map, &at, &n))
        return;
    unsigned char *start = map->at + at / PAGE * PAGE;
    uint64_t pages = pages_of(at % PAGE + n);
    bool on_fault = one_in(3);
    note("mlock %p, %llu pages of file %d", (void *)start, (unsigned long long)pages, map->file);
    CHECK((on_fault ? mlock2(start, pages * PAGE, MLOCK_ONFAULT) : mlock(start, pages * PAGE)) == 0);
    for (uint64_t i = 0; !on_fault && map->protection & PROT_WRITE && i < pages; i++)
        private_page(map, at / PAGE + i);
    check_load(map, at, n < LARGEST ? n : LARGEST);
    CHECK(munlock(start, pages * PAGE) == 0);
}
