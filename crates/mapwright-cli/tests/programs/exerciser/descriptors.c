/* Reading and writing by descriptors and streams. */
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>

#include "exerciser.h"

struct descriptor descriptors[DESCRIPTORS];
unsigned descriptor_count;

/* Positions of the parent's, which a child's own descriptors may not have. */
static bool inherited[DESCRIPTORS];

static bool can(const struct descriptor *of, int access) {
    int has = of->flags & O_ACCMODE;
    return has == O_RDWR || has == access;
}

/* One that can be read or written. */
struct descriptor *some_descriptor(int access) {
    unsigned start = descriptor_count ? below(descriptor_count) : 0;
    for (unsigned i = 0; i < descriptor_count; i++) {
        struct descriptor *found = &descriptors[(start + i) % descriptor_count];
        if (can(found, access))
            return found;
    }
    return NULL;
}

static int64_t *position_of(const struct descriptor *of) {
    return &shared->process[me].positions[of->description];
}

static uint64_t len_of(const struct descriptor *of) {
    return shared->files[of->file].len;
}

/* Puts a descriptor of the file that has the name on the list. */
static void keep(int fd, int file, int flags) {
    bool taken[DESCRIPTORS];
    memcpy(taken, inherited, sizeof taken);
    for (unsigned i = 0; i < descriptor_count; i++)
        taken[descriptors[i].description] = true;
    int description = 0;
    while (taken[description])
        description++;
    CHECK(description < DESCRIPTORS);
    descriptors[descriptor_count++] = (struct descriptor){fd, file, flags, description};
    shared->process[me].positions[description] = 0;
    recount();
}

/* A child has come to be. */
void inherit_positions(void) {
    for (unsigned i = 0; i < descriptor_count; i++)
        inherited[descriptors[i].description] = true;
}

bool open_one(int flags) {
    unsigned taken = descriptor_count;
    for (unsigned i = 0; i < DESCRIPTORS; i++)
        taken += inherited[i];
    if (taken >= DESCRIPTORS)
        return false;
    note("open with %#x", flags);
    int fd = open(shared->path, flags);
    if (fd < 0 && flags & O_DIRECT && errno == EINVAL)
        return false; // the file system has none
    CHECK(fd >= 0);
    keep(fd, shared->current, flags);
    return true;
}

void close_at(unsigned index) {
    note("close %d of file %d", descriptors[index].fd, descriptors[index].file);
    CHECK(close(descriptors[index].fd) == 0);
    descriptors[index] = descriptors[--descriptor_count];
    recount();
}

void open_some(void) {
    bool reads = shared->phase == READERS || one_in(3);
    int flags = reads ? O_RDONLY : one_in(8) ? O_WRONLY : O_RDWR;
    if (one_in(2))
        flags |= O_CLOEXEC;
    if (one_in(15))
        flags |= O_DSYNC;
    if (one_in(20))
        flags |= O_DIRECT;
    else if (one_in(10))
        flags |= O_APPEND;
    open_one(flags);
}

void close_some(void) {
    if (descriptor_count)
        close_at(below(descriptor_count));
}

/* Sends a descriptor to itself. */
static int by_message(int fd) {
    int ends[2], copy;
    char byte = 0;
    union {
        struct cmsghdr header;
        char bytes[CMSG_SPACE(sizeof fd)];
    } control = {.header = {.cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0 && sendmsg(ends[0], &message, 0) == 1);
    CHECK(recvmsg(ends[1], &message, MSG_CMSG_CLOEXEC) == 1 && message.msg_controllen >= CMSG_LEN(sizeof fd));
    memcpy(&copy, CMSG_DATA(&control.header), sizeof copy);
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
    return copy;
}

void duplicate(void) {
    if (!descriptor_count || descriptor_count == DESCRIPTORS)
        return;
    struct descriptor copy = descriptors[below(descriptor_count)];
    unsigned way = below(4);
    note("another descriptor for %d, %u", copy.fd, way);
    if (way == 0)
        copy.fd = by_message(copy.fd);
    else
        copy.fd = way == 1 ? fcntl(copy.fd, F_DUPFD_CLOEXEC, 50) : dup(copy.fd);
    CHECK(copy.fd >= 0);
    descriptors[descriptor_count++] = copy;
    recount();
}

/* From now on it writes at the end, or no more. Those that are a dup(2) of it too, and a parent's. */
void set_append(void) {
    if (!descriptor_count || is_child)
        return;
    const struct descriptor by = descriptors[below(descriptor_count)];
    if (by.flags & O_DIRECT || (by.flags & O_ACCMODE) == O_RDONLY)
        return;
    note("fcntl %d, F_SETFL, O_APPEND %s", by.fd, by.flags & O_APPEND ? "off" : "on");
    int flags = fcntl(by.fd, F_GETFL);
    CHECK(flags >= 0 && !(flags & O_APPEND) == !(by.flags & O_APPEND) && fcntl(by.fd, F_SETFL, flags ^ O_APPEND) == 0);
    for (unsigned i = 0; i < descriptor_count; i++)
        if (descriptors[i].description == by.description)
            descriptors[i].flags ^= O_APPEND;
}

/* A time of modification that is set stays, though what was stored before is written later. */
void set_time(void) {
    if (!descriptor_count)
        return;
    const struct descriptor *by = &descriptors[below(descriptor_count)];
    struct timespec times[2] = {{.tv_sec = 1000000 + below(1000000)}, {.tv_sec = 1000000 + below(1000000), .tv_nsec = 5}};
    struct stat status;
    bool by_path = by->file == (int)shared->current && one_in(2);
    note("time of file %d, by %s", by->file, by_path ? "its path" : "a descriptor");
    CHECK((by_path ? utimensat(AT_FDCWD, shared->path, times, 0) : futimens(by->fd, times)) == 0);
    for (unsigned i = 0; i < 2; i++) {
        CHECK(fstat(by->fd, &status) == 0);
        if (status.st_mtim.tv_sec != times[1].tv_sec || status.st_mtim.tv_nsec != times[1].tv_nsec)
            fail("the time of modification was set to %lld, and is %lld.%09ld %s", (long long)times[1].tv_sec,
                (long long)status.st_mtim.tv_sec, status.st_mtim.tv_nsec, i ? "after fsync(2)" : "at once");
        CHECK(i || !one_in(8) || fsync(by->fd) == 0);
    }
}

static bool apart(uint64_t a, uint64_t b, uint64_t n) {
    return a + n <= b || b + n <= a;
}

/* Reads into a mapping. */
static void read_into_map(const struct descriptor *by) {
    struct map *map;
    uint64_t at, n = some_len(), from = some_offset(by->file);
    if (!span_to_write(&map, &at, &n))
        return;
    uint64_t to = map->first * PAGE + at, there = len_of(by) - from;
    if (len_of(by) <= from)
        return;
    n = n < there ? n : there;
    if (by->flags & O_DIRECT) {
        uint64_t more = (PAGE - at % PAGE) % PAGE;
        n = n > more ? (n - more) / PAGE * PAGE : 0;
        at += more, to += more, from = from / PAGE * PAGE;
    }
    if (n == 0 || (map->shared && map->file == by->file && !apart(from, to, n)))
        return;
    note("pread fd %d into %p, %llu of file %d from %llu, to file %d (%s), %llu", by->fd, (void *)map->at,
        (unsigned long long)n, by->file, (unsigned long long)from, map->file, map->shared ? "shared" : "private",
        (unsigned long long)to);
    memcpy(buffer, shared->files[by->file].bytes + from, n);
    before_store(map, at, n);
    CHECK(pread(by->fd, map->at + at, n, from) == (ssize_t)n);
    after_store(map, at, buffer, n);
    check_load(map, at, n < LARGEST ? n : LARGEST);
}

/* Two parts of the buffer. */
static void two_parts(struct iovec parts[2], uint64_t n) {
    uint64_t first = below(n + 1);
    parts[0] = (struct iovec){buffer, first};
    parts[1] = (struct iovec){buffer + first, n - first};
}

void read_some(void) {
    static const char *const names[] = {"read", "readv", "preadv2 where it is", "pread", "preadv", "preadv2"};
    const struct descriptor *by = some_descriptor(O_RDONLY);
    if (!by)
        return;
    bool direct = by->flags & O_DIRECT;
    if (one_in(6))
        return read_into_map(by);
    unsigned way = direct ? 3 : below(6);
    uint64_t n = some_len(), at = some_offset(by->file), len = len_of(by);
    if (direct)
        n = (1 + below(4)) * PAGE, at = at / PAGE * PAGE;
    int64_t *position = position_of(by);
    if (way < 3)
        at = *position;
    uint64_t expected = at >= len ? 0 : n < len - at ? n : len - at;
    note("%s fd %d, %llu of file %d at %llu", names[way], by->fd, (unsigned long long)n, by->file,
        (unsigned long long)at);
    struct iovec parts[2];
    two_parts(parts, n);
    ssize_t done = -1;
    switch (way) {
    case 0: done = read(by->fd, buffer, n); break;
    case 1: done = readv(by->fd, parts, 2); break;
    case 2: done = preadv2(by->fd, parts, 2, -1, 0); break;
    case 3: done = pread(by->fd, buffer, n, at); break;
    case 4: done = preadv(by->fd, parts, 2, at); break;
    case 5: done = preadv2(by->fd, parts, 2, at, 0); break;
    }
    if (done != (ssize_t)expected)
        fail("read %zd bytes of %llu (errno %d), of a file of %llu", done, (unsigned long long)expected, errno,
            (unsigned long long)len);
    if (way < 3)
        *position += done;
    compare(buffer, by->file, at, done, names[way]);
}

/* What writing has changed. */
static void written(int file, uint64_t at, const unsigned char *bytes, uint64_t n) {
    uint64_t before = shared->files[file].len;
    model_write(file, at, bytes, n);
    end_change(file, at < before ? at : before, at + n);
    if (one_in(3))
        look_elsewhere(file, at, n);
}

static void about_to_write(int file, uint64_t at, uint64_t n) {
    uint64_t len = shared->files[file].len;
    begin_change(file, at < len ? at : len, at + n);
}

/* Writes from a mapping. */
static void write_from_map(const struct descriptor *by) {
    struct map *map;
    uint64_t at, n = some_len(), to = some_offset(by->file);
    if (by->flags & O_APPEND || !span_to_read(&map, &at, &n) || to + n > MOST)
        return;
    uint64_t from = map->first * PAGE + at;
    if (map->file == by->file && !apart(from, to, n))
        return;
    check_load(map, at, n < LARGEST ? n : LARGEST);
    note("pwrite fd %d from %p, %llu of file %d from %llu, to file %d, %llu", by->fd, (void *)map->at,
        (unsigned long long)n, map->file, (unsigned long long)from, by->file, (unsigned long long)to);
    memcpy(other_buffer, buffer, n);
    about_to_write(by->file, to, n);
    CHECK(pwrite(by->fd, map->at + at, n, to) == (ssize_t)n);
    written(by->file, to, other_buffer, n);
}

void write_some(void) {
    static const char *const names[] = {"write", "writev", "pwritev2 where it is", "pwrite", "pwritev", "pwritev2",
        "pwritev2 at the end"};
    const struct descriptor *by = some_descriptor(O_WRONLY);
    if (!by)
        return;
    bool direct = by->flags & O_DIRECT;
    if (!direct && one_in(6))
        return write_from_map(by);
    unsigned way = direct ? 3 : below(7);
    uint64_t n = some_len(), at = some_offset(by->file) + (one_in(10) ? below(3 * PAGE) : 0), len = len_of(by);
    if (direct)
        n = (1 + below(4)) * PAGE, at = at / PAGE * PAGE;
    int64_t *position = position_of(by);
    if (way < 3)
        at = *position;
    if (by->flags & O_APPEND || way == 6)
        at = len; // on Linux with a position too
    if (at + n > MOST)
        return;
    note("%s fd %d, %llu of file %d at %llu", names[way], by->fd, (unsigned long long)n, by->file,
        (unsigned long long)at);
    fill(buffer, n);
    struct iovec parts[2];
    two_parts(parts, n);
    about_to_write(by->file, at, n);
    ssize_t done = -1;
    switch (way) {
    case 0: done = write(by->fd, buffer, n); break;
    case 1: done = writev(by->fd, parts, 2); break;
    case 2: done = pwritev2(by->fd, parts, 2, -1, 0); break;
    case 3: done = pwrite(by->fd, buffer, n, at); break;
    case 4: done = pwritev(by->fd, parts, 2, at); break;
    case 5: done = pwritev2(by->fd, parts, 2, at, one_in(20) ? RWF_DSYNC : 0); break;
    case 6: done = pwritev2(by->fd, parts, 2, 0, RWF_APPEND); break;
    }
    if (done != (ssize_t)n)
        fail("wrote %zd bytes of %llu (errno %d)", done, (unsigned long long)n, errno);
    if (way < 3)
        *position = at + n;
    int file = by->file;
    written(file, at, buffer, n);
}

/* Where data begin and end: what is left out must be zeros. */
static void seek_data(const struct descriptor *by) {
    uint64_t from = some_offset(by->file), len = len_of(by);
    if (from >= len)
        return;
    int64_t data = lseek(by->fd, from, SEEK_DATA);
    CHECK(data >= (int64_t)from || (data == -1 && errno == ENXIO));
    uint64_t end = data < 0 ? len : (uint64_t)data;
    for (uint64_t at = from; at < end; at++)
        if (shared->files[by->file].bytes[at])
            fail("SEEK_DATA of file %d from %llu left out %llu, where %#04x is", by->file, (unsigned long long)from,
                (unsigned long long)at, shared->files[by->file].bytes[at]);
    int64_t hole = lseek(by->fd, from, SEEK_HOLE);
    CHECK(hole >= (int64_t)from && hole <= (int64_t)len);
    CHECK(lseek(by->fd, from, SEEK_SET) == (int64_t)from);
    *position_of(by) = from;
}

void seek(void) {
    if (!descriptor_count)
        return;
    const struct descriptor *by = &descriptors[below(descriptor_count)];
    note("lseek fd %d, file %d", by->fd, by->file);
    if (one_in(8))
        return seek_data(by);
    int64_t *position = position_of(by), to = some_offset(by->file) + (one_in(20) ? 5000 : 0), len = len_of(by);
    switch (below(4)) {
    case 0: CHECK(lseek(by->fd, to, SEEK_SET) == to); break;
    case 1: CHECK(lseek(by->fd, to - *position, SEEK_CUR) == to); break;
    case 2: CHECK(lseek(by->fd, to - len, SEEK_END) == to); break;
    case 3:
        CHECK(lseek(by->fd, 0, SEEK_CUR) == *position);
        CHECK(lseek(by->fd, -1, SEEK_SET) == -1 && errno == EINVAL);
        return;
    }
    *position = to;
}

/* Two descriptors of which the one can be copied into the other, from where and to where. */
static bool span_to_copy(const struct descriptor **in, const struct descriptor **out, uint64_t *from, uint64_t *to,
    uint64_t *n) {
    *in = some_descriptor(O_RDONLY);
    *out = some_descriptor(O_WRONLY);
    if (!*in || !*out || ((*in)->flags | (*out)->flags) & (O_DIRECT | O_DSYNC) || (*out)->flags & O_APPEND)
        return false;
    *n = 1 + below(one_in(2) ? PAGE : 40000);
    *from = some_offset((*in)->file);
    *to = some_offset((*out)->file) + (one_in(10) ? below(PAGE) : 0);
    uint64_t there = len_of(*in) > *from ? len_of(*in) - *from : 0;
    *n = *n < there ? *n : there;
    return *n && *to + *n <= MOST && ((*in)->file != (*out)->file || apart(*from, *to, *n));
}

void copy_range(void) {
    const struct descriptor *in, *out;
    uint64_t from, to, n;
    if (!span_to_copy(&in, &out, &from, &to, &n))
        return;
    bool by_sendfile = one_in(2);
    loff_t source = from, target = to;
    note("%s, fd %d, file %d at %llu, to fd %d, file %d at %llu, %llu", by_sendfile ? "sendfile" : "copy_file_range",
        in->fd, in->file, (unsigned long long)from, out->fd, out->file, (unsigned long long)to, (unsigned long long)n);
    memcpy(buffer, shared->files[in->file].bytes + from, n);
    about_to_write(out->file, to, n);
    if (by_sendfile) {
        CHECK(lseek(out->fd, to, SEEK_SET) == (int64_t)to);
        *position_of(out) = to + n;
    }
    for (uint64_t done = 0; done < n;) {
        ssize_t part = by_sendfile ? sendfile(out->fd, in->fd, &source, n - done)
                                   : copy_file_range(in->fd, &source, out->fd, &target, n - done, 0);
        CHECK(part > 0 && part <= (ssize_t)(n - done));
        done += part;
        CHECK(source == (loff_t)(from + done) && target == (loff_t)(by_sendfile ? to : to + done));
    }
    int file = out->file;
    written(file, to, buffer, n);
}

/* splice(2): out of the file, and into one. */
void copy_by_pipe(void) {
    const struct descriptor *in, *out;
    uint64_t from, to, n;
    if (!span_to_copy(&in, &out, &from, &to, &n))
        return;
    int ends[2];
    loff_t source = from, target = to;
    note("splice, fd %d, file %d at %llu, to fd %d, file %d at %llu, %llu", in->fd, in->file, (unsigned long long)from,
        out->fd, out->file, (unsigned long long)to, (unsigned long long)n);
    CHECK(pipe2(ends, O_CLOEXEC) == 0);
    memcpy(buffer, shared->files[in->file].bytes + from, n);
    bool writes = one_in(2);
    if (writes)
        about_to_write(out->file, to, n);
    for (uint64_t done = 0; done < n;) {
        ssize_t part = splice(in->fd, &source, ends[1], NULL, n - done, 0);
        CHECK(part > 0 && part <= (ssize_t)(n - done));
        if (!writes) {
            CHECK(read(ends[0], other_buffer, part) == part);
            compare(other_buffer, in->file, from + done, part, "splice");
        }
        done += part;
        while (writes && target < (loff_t)(to + done))
            CHECK(splice(ends[0], NULL, out->fd, &target, to + done - target, SPLICE_F_MOVE) > 0);
    }
    int file = out->file;
    if (writes)
        written(file, to, buffer, n);
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
}

/* A stream, by the file's name or by one of the descriptors, which it makes a copy of. It may write, if the phase allows. */
static FILE *some_stream(const char *mode, int *file) {
    *file = shared->current;
    const struct descriptor *by = some_descriptor(strchr(mode, '+') ? O_RDWR : O_RDONLY);
    if (!by || by->flags & (O_DIRECT | O_APPEND) || one_in(2))
        return fopen(shared->path, mode);
    *file = by->file;
    int fd = dup(by->fd);
    CHECK(fd >= 0);
    return fdopen(fd, mode);
}

/* A dup(2)'s position is that of the descriptor, and where a stream leaves it is the C library's matter. */
static void set_positions(void) {
    for (unsigned i = 0; i < descriptor_count; i++) {
        int64_t position = *position_of(&descriptors[i]);
        CHECK(lseek(descriptors[i].fd, position, SEEK_SET) == position);
    }
}

void stream(void) {
    bool writes = shared->phase == EVERYTHING && one_in(2);
    const char *mode = writes ? "r+" : one_in(3) ? "rm" : "r";
    int file;
    FILE *stream = some_stream(mode, &file);
    uint64_t n = 1 + below(2 * PAGE), at = some_offset(file), len = shared->files[file].len;
    note("stream %s, %llu of file %d at %llu", mode, (unsigned long long)n, file, (unsigned long long)at);
    CHECK(stream && fseek(stream, at, SEEK_SET) == 0);
    uint64_t expected = len - at < n ? len - at : n;
    CHECK(fread(buffer, 1, n, stream) == expected);
    compare(buffer, file, at, expected, "fread");
    if (writes && at + n <= MOST) {
        fill(buffer, n);
        CHECK(fseek(stream, at, SEEK_SET) == 0);
        about_to_write(file, at, n);
        CHECK(fwrite(buffer, 1, n, stream) == n && fflush(stream) == 0);
        written(file, at, buffer, n);
    }
    CHECK(fclose(stream) == 0);
    set_positions();
}

void sync_file(void) {
    if (!descriptor_count)
        return;
    const struct descriptor *by = &descriptors[below(descriptor_count)];
    unsigned way = below(4);
    note("sync fd %d, file %d, %u", by->fd, by->file, way);
    switch (way) {
    case 0: CHECK(fsync(by->fd) == 0); break;
    case 1: CHECK(fdatasync(by->fd) == 0); break;
    case 2: CHECK(sync_file_range(by->fd, 0, 0, SYNC_FILE_RANGE_WRITE) == 0); break;
    case 3: CHECK(posix_fadvise(by->fd, 0, 0, one_in(2) ? POSIX_FADV_DONTNEED : POSIX_FADV_RANDOM) == 0); break;
    }
}

void look_at_status(void) {
    struct stat status;
    note("stat");
    CHECK(stat(shared->path, &status) == 0 && (uint64_t)status.st_size == shared->files[shared->current].len);
    if (!descriptor_count)
        return;
    const struct descriptor *by = &descriptors[below(descriptor_count)];
    CHECK(fstat(by->fd, &status) == 0 && (uint64_t)status.st_size == len_of(by));
}

/* A store is seen in the time of modification when it was made durable. */
void modification_time(void) {
    struct map *map;
    uint64_t at, n = 1;
    struct stat status;
    struct timespec before;
    if (!span_to_write(&map, &at, &n) || !map->shared)
        return;
    unsigned char *page = map->at + at / PAGE * PAGE, byte = map->at[at] + 1;
    note("modification time of file %d, page at %p", map->file, (void *)page);
    if (map->file != (int)shared->current)
        return;
    CHECK(msync(page, PAGE, MS_SYNC) == 0 && clock_gettime(CLOCK_REALTIME_COARSE, &before) == 0);
    before_store(map, at, 1);
    map->at[at] = byte;
    after_store(map, at, &byte, 1);
    CHECK(msync(page, PAGE, MS_SYNC) == 0 && stat(shared->path, &status) == 0);
    if (status.st_mtim.tv_sec < before.tv_sec ||
        (status.st_mtim.tv_sec == before.tv_sec && status.st_mtim.tv_nsec < before.tv_nsec))
        fail("a store at %lld.%09ld is not seen in the time of modification, %lld.%09ld", (long long)before.tv_sec,
            before.tv_nsec, (long long)status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
}

/* All of the file that has the name. */
void check_file(int fd) {
    uint64_t len = shared->files[shared->current].len, at = 0;
    struct stat status;
    CHECK(fstat(fd, &status) == 0 && (uint64_t)status.st_size == len);
    while (at < len) {
        ssize_t n = pread(fd, buffer, sizeof buffer, at);
        CHECK(n > 0);
        compare(buffer, shared->current, at, n, "the whole file, by read(2)");
        at += n;
    }
}

/* The same by a descriptor of its own, and by a mapping. */
void check_all(bool by_map) {
    int fd = open(shared->path, O_RDONLY | O_CLOEXEC);
    CHECK(fd >= 0);
    check_file(fd);
    uint64_t len = shared->files[shared->current].len;
    if (by_map && len) {
        unsigned char *map = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0);
        CHECK(map != MAP_FAILED);
        compare(map, shared->current, 0, len, "the whole file, by mmap(2)");
        CHECK(munmap(map, len) == 0);
    }
    CHECK(close(fd) == 0);
}
