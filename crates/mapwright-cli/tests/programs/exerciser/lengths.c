/* Cutting, growing, holes, and other files of the same name. */
#include "exerciser.h"

static uint64_t len_of(int file) {
    return shared->files[file].len;
}

void truncate_some(void) {
    const struct descriptor *by = one_in(2) ? some_descriptor(O_WRONLY) : NULL;
    int file = by ? by->file : (int)shared->current;
    uint64_t before = len_of(file), len = some_file_len();
    if (one_in(2)) {
        // By little.
        len = before + below(64 << 10);
        len = len < 32 << 10 ? 0 : len - (32 << 10);
        len = len < MOST ? len : MOST;
    }
    note("%s file %d from %llu to %llu", by ? "ftruncate" : "truncate", file, (unsigned long long)before,
        (unsigned long long)len);
    uint64_t start = before < len ? before : len, end = before < len ? len : before;
    begin_change(file, start, end);
    CHECK((by ? ftruncate(by->fd, len) : truncate(shared->path, len)) == 0);
    model_set_len(file, len);
    end_change(file, start, end);
    for (unsigned i = 0; i < descriptor_count; i++)
        if ((descriptors[i].flags & O_ACCMODE) == O_RDONLY)
            CHECK(ftruncate(descriptors[i].fd, len) == -1 && errno == EINVAL);
    look_elsewhere(file, start, end - start < PAGE ? end - start : PAGE);
}

/* All that fallocate(2) does but for what shifts. */
void allocate(void) {
    static const struct {
        const char *name;
        int mode;
        bool grows, zeroes;
    } ways[] = {
        {"allocate", 0, true, false},
        {"allocate, keep size", FALLOC_FL_KEEP_SIZE, false, false},
        {"punch hole", FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, false, true},
        {"zero range", FALLOC_FL_ZERO_RANGE, true, true},
        {"zero range, keep size", FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, false, true},
    };
    const struct descriptor *by = some_descriptor(O_WRONLY);
    if (!by)
        return;
    unsigned way = below(5);
    uint64_t before = len_of(by->file), at = some_offset(by->file), n = 1 + below(one_in(3) ? 64 << 10 : 3 * PAGE);
    if (one_in(4))
        at = at / PAGE * PAGE;
    if (at + n > MOST)
        return;
    uint64_t after = ways[way].grows && at + n > before ? at + n : before;
    uint64_t start = at < before ? at : before, end = at + n;
    note("%s, fd %d, %llu of file %d at %llu, length %llu", ways[way].name, by->fd, (unsigned long long)n, by->file,
        (unsigned long long)at, (unsigned long long)before);
    begin_change(by->file, start, end);
    int done = way == 0 && one_in(2) ? -posix_fallocate(by->fd, at, n) : fallocate(by->fd, ways[way].mode, at, n);
    CHECK(done == 0 || errno == EOPNOTSUPP);
    if (done == 0) {
        if (ways[way].zeroes && at < before)
            model_zero(by->file, at, at + n < before ? at + n : before);
        model_set_len(by->file, after);
    }
    end_change(by->file, start, end);
    look_elsewhere(by->file, at, n);
}

/* Pages are taken out of the file, or put in. Private copies of what follows may get lost by that or not: not where there are any. */
void shift(void) {
    const struct descriptor *by = some_descriptor(O_WRONLY);
    if (!by || has_copies(by->file))
        return;
    struct file *of = &shared->files[by->file];
    uint64_t pages = of->len / PAGE, n = (1 + below(4)) * PAGE, len = of->len;
    if (pages < 8)
        return;
    uint64_t at = below(pages - 5) * PAGE;
    bool inserts = one_in(2);
    if (inserts && len + n > MOST)
        return;
    note("%s range, fd %d, %llu of file %d at %llu", inserts ? "insert" : "collapse", by->fd, (unsigned long long)n,
        by->file, (unsigned long long)at);
    begin_change(by->file, at, MOST);
    int done = fallocate(by->fd, inserts ? FALLOC_FL_INSERT_RANGE : FALLOC_FL_COLLAPSE_RANGE, at, n);
    CHECK(done == 0 || errno == EOPNOTSUPP || errno == EINVAL); // larger blocks
    if (done == 0 && inserts) {
        memmove(of->bytes + at + n, of->bytes + at, len - at);
        of->len += n;
        model_zero(by->file, at, at + n);
    } else if (done == 0) {
        memmove(of->bytes + at, of->bytes + at + n, len - at - n);
        model_zero(by->file, len - n, len);
        of->len -= n;
    }
    end_change(by->file, at, MOST);
}

/* The file is cut by open(2), and grows again. */
void open_cutting(void) {
    int file = shared->current, flags = one_in(2) ? O_RDONLY : O_RDWR;
    begin_change(file, 0, MOST);
    if (open_one(flags | O_TRUNC)) {
        descriptors[descriptor_count - 1].flags = flags;
        model_set_len(file, 0);
    }
    end_change(file, 0, MOST);
    uint64_t len = some_file_len();
    note("truncate to %llu", (unsigned long long)len);
    begin_change(file, 0, MOST);
    CHECK(truncate(shared->path, len) == 0);
    model_set_len(file, len);
    end_change(file, 0, MOST);
}

/* A new file, which is the one that has the name. */
void create(const char *path) {
    int file = free_file();
    CHECK(file >= 0);
    uint64_t len = some_file_len();
    note("creates %s, file %d, length %llu", path, file, (unsigned long long)len);
    int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    begin_change(file, 0, len);
    CHECK(fd >= 0 && ftruncate(fd, len) == 0);
    model_set_len(file, len);
    for (uint64_t at = 0, n; at < len; at += n) {
        n = LARGEST < len - at ? LARGEST : len - at;
        if (one_in(8))
            continue; // a hole
        fill(buffer, n);
        CHECK(pwrite(fd, buffer, n, at) == (ssize_t)n);
        model_write(file, at, buffer, n);
    }
    end_change(file, 0, len);
    CHECK(close(fd) == 0);
    shared->current = file;
}

/* Another file gets the name; who has the former one has it still. */
void replace_file(void) {
    if (is_child || free_file() < 0)
        return;
    if (one_in(2)) {
        note("unlink");
        CHECK(unlink(shared->path) == 0);
        return create(shared->path);
    }
    char other[sizeof shared->path + 4];
    snprintf(other, sizeof other, "%s.new", shared->path);
    create(other);
    CHECK(rename(other, shared->path) == 0);
}
