/* A program that maps a file for writing by its only descriptor, writes what is mapped, and then does something by that descriptor, or lets another
 * process do it: what was stored must be seen by the call, and what the call writes must be seen in the map. descriptors WHAT FILE: does one thing and
 * says "right WHAT". It knows of no pager, and says the same with one and without. */
#include <aio.h>
#include <dlfcn.h>
#include <limits.h>
#include <linux/aio_abi.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <utime.h>
#include <wordexp.h>

#include "file.h"
#ifdef BY_SYSCALL
#include "descriptors_by_syscall.h"
#endif

#define LEN (2 * MIB)
#define PAGES (LEN / PAGE)
#define AT (300 * PAGE + 1234) /* what is read and written by calls: in three pages */
#define BYTES (2 * PAGE)

static const char *self;
static int fd;
static unsigned char *map;
static unsigned char expected[LEN], buffer[LEN];

static unsigned char value(size_t at, int round) {
    return (at * 2654435761u >> 13) + at + 31 * round;
}

/* Stores in the map: a few bytes in most pages, and in all that calls are about. */
static void store(int round) {
    for (size_t page = 0; page < PAGES; page += page >= 290 && page < 320 ? 1 : 3)
        for (size_t at = page * PAGE + 100 + 16 * round; at < page * PAGE + 116 + 16 * round; at++)
            map[at] = expected[at] = value(at, round);
    for (size_t at = AT; at < AT + BYTES; at += 7)
        map[at] = expected[at] = value(at, round);
}

static void map_file(void) {
    map = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(map != MAP_FAILED);
    memcpy(expected, map, LEN);
}

static void begin(void) {
    fd = open_file(O_RDWR);
    CHECK(len == LEN);
    map_file();
    store(0);
}

/* A file without any contents but what is stored. */
static void begin_with_holes(void) {
    fd = open(path, O_RDWR);
    CHECK(fd >= 0 && ftruncate(fd, 0) == 0 && ftruncate(fd, LEN) == 0);
    map_file();
    map[MIB] = expected[MIB] = 5;
}

/* The map shows what it should, and goes on to be one; the file holds the same in the end. */
static void finish(void) {
    CHECK(memcmp(map, expected, LEN) == 0);
    store(1);
    CHECK(memcmp(map, expected, LEN) == 0);
    CHECK(munmap(map, LEN) == 0 && close(fd) == 0);
    int reader = open(path, O_RDONLY);
    struct stat stat;
    CHECK(reader >= 0 && fstat(reader, &stat) == 0 && stat.st_size == LEN);
    size_t done = 0;
    for (ssize_t got; done < LEN && (got = pread(reader, buffer + done, LEN - done, done)) > 0;)
        done += got;
    CHECK(done == LEN && memcmp(buffer, expected, LEN) == 0 && close(reader) == 0);
}

static void is_read(ssize_t result) {
    CHECK(result == BYTES && memcmp(buffer, expected + AT, BYTES) == 0);
    memset(buffer, 0, BYTES);
}

static void prepare_write(int round) {
    for (size_t at = 0; at < BYTES; at++)
        buffer[at] = value(at * 3, 10 + round);
}

static void is_written(ssize_t result) {
    CHECK(result == BYTES);
    memcpy(expected + AT, buffer, BYTES);
    CHECK(memcmp(map + AT, expected + AT, BYTES) == 0);
}

static struct iovec parts[2] = {{buffer, 1000}, {buffer + 1000, BYTES - 1000}};

#define READS(name, call) static void name(void) { begin(); is_read(call); finish(); }
#define WRITES(name, call) static void name(void) { begin(); prepare_write(0); is_written(call); finish(); }

static int at_place(void) {
    CHECK(lseek(fd, AT, SEEK_SET) == AT);
    return fd;
}

READS(by_read, read(at_place(), buffer, BYTES))
READS(by_readv, readv(at_place(), parts, 2))
READS(by_pread, pread(fd, buffer, BYTES, AT))
READS(by_preadv, preadv(fd, parts, 2, AT))
READS(by_preadv2, preadv2(fd, parts, 2, AT, 0))
WRITES(by_write, write(at_place(), buffer, BYTES))
WRITES(by_writev, writev(at_place(), parts, 2))
WRITES(by_pwrite, pwrite(fd, buffer, BYTES, AT))
WRITES(by_pwritev, pwritev(fd, parts, 2, AT))
WRITES(by_pwritev2, pwritev2(fd, parts, 2, AT, 0))

#ifndef BY_SYSCALL
ssize_t __read_chk(int, void *, size_t, size_t);
ssize_t __pread_chk(int, void *, size_t, off_t, size_t);
ssize_t __pread64_chk(int, void *, size_t, off_t, size_t);
ssize_t __read(int, void *, size_t);
ssize_t __pread64(int, void *, size_t, off_t);
ssize_t __write(int, const void *, size_t);
ssize_t __pwrite64(int, const void *, size_t, off_t);
int __dprintf_chk(int, int, const char *, ...);
int __vdprintf_chk(int, int, const char *, va_list);

READS(by_read_chk, __read_chk(at_place(), buffer, BYTES, sizeof buffer))
READS(by_pread_chk, __pread_chk(fd, buffer, BYTES, AT, sizeof buffer))
READS(by_pread64_chk, __pread64_chk(fd, buffer, BYTES, AT, sizeof buffer))
READS(by___read, __read(at_place(), buffer, BYTES))
READS(by_pread64, pread64(fd, buffer, BYTES, AT))
READS(by___pread64, __pread64(fd, buffer, BYTES, AT))
READS(by_preadv64, preadv64(fd, parts, 2, AT))
READS(by_preadv64v2, preadv64v2(fd, parts, 2, AT, 0))
WRITES(by___write, __write(at_place(), buffer, BYTES))
WRITES(by_pwrite64, pwrite64(fd, buffer, BYTES, AT))
WRITES(by___pwrite64, __pwrite64(fd, buffer, BYTES, AT))
WRITES(by_pwritev64, pwritev64(fd, parts, 2, AT))
WRITES(by_pwritev64v2, pwritev64v2(fd, parts, 2, AT, 0))

/* Formats with more arguments than there are registers, of all kinds. */
#define FORMAT "%d %s %.3f %ld %c %.2f %d %d %d %.1f %.1f %.1f %.1f %.1f %.1f %.1f %.1f %s %d|"
#define LISTED 1, "two", 3.5, 4L, '5', 6.25, 7, 8, 9, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5, "end", -10

static void is_printed(int result) {
    char text[200];
    CHECK(snprintf(text, sizeof text, FORMAT, LISTED) == result && result > 60);
    memcpy(expected + AT, text, result);
    CHECK(memcmp(map + AT, text, result) == 0);
}

static int print_listed(int checked, const char *format, ...) {
    va_list list;
    va_start(list, format);
    int result = checked ? __vdprintf_chk(fd, 1, format, list) : vdprintf(fd, format, list);
    va_end(list);
    return result;
}

#define PRINTS(name, call) static void name(void) { begin(); at_place(); is_printed(call); finish(); }
PRINTS(by_dprintf, dprintf(fd, FORMAT, LISTED))
PRINTS(by_dprintf_chk, __dprintf_chk(fd, 1, FORMAT, LISTED))
PRINTS(by_vdprintf, print_listed(0, FORMAT, LISTED))
PRINTS(by_vdprintf_chk, print_listed(1, FORMAT, LISTED))

static void by_fdopen(void) {
    begin();
    FILE *stream = fdopen(fd, "r+");
    CHECK(stream && fseek(stream, AT, SEEK_SET) == 0);
    is_read(fread(buffer, 1, BYTES, stream));
    store(2);
    prepare_write(0);
    CHECK(fseek(stream, AT, SEEK_SET) == 0);
    size_t written = fwrite(buffer, 1, BYTES, stream);
    CHECK(fflush(stream) == 0);
    is_written(written);
    finish();
}

static void of_a_stream(int (*descriptor_of)(FILE *)) {
    FILE *stream = fopen(path, "r+");
    CHECK(stream);
    fd = descriptor_of(stream);
    map_file();
    store(0);
    CHECK(fseek(stream, AT, SEEK_SET) == 0);
    is_read(fread(buffer, 1, BYTES, stream));
    prepare_write(0);
    CHECK(fseek(stream, AT, SEEK_SET) == 0);
    size_t written = fwrite(buffer, 1, BYTES, stream);
    CHECK(fflush(stream) == 0);
    is_written(written);
    finish();
}

static void by_fileno(void) { of_a_stream(fileno); }
static void by_fileno_unlocked(void) { of_a_stream(fileno_unlocked); }

static void is_done(struct aiocb *control) {
    const struct aiocb *list[] = {control};
    while (aio_error(control) == EINPROGRESS)
        CHECK(aio_suspend(list, 1, NULL) == 0 || errno == EINTR);
    CHECK(aio_error(control) == 0 && aio_return(control) == BYTES);
}

static void by_aio(int is_list) {
    struct aiocb control = {.aio_fildes = fd, .aio_buf = buffer, .aio_nbytes = BYTES, .aio_offset = AT}, *list[] = {&control};
    control.aio_lio_opcode = LIO_READ;
    CHECK((is_list ? lio_listio(LIO_WAIT, list, 1, NULL) : aio_read(&control)) == 0);
    is_done(&control);
    is_read(BYTES);
    store(2); /* its thread may be asked for more at any time */
    prepare_write(0);
    control.aio_lio_opcode = LIO_WRITE;
    CHECK((is_list ? lio_listio(LIO_WAIT, list, 1, NULL) : aio_write(&control)) == 0);
    is_done(&control);
    is_written(BYTES);
    finish();
}

static void by_aio_read(void) { begin(); by_aio(0); }
static void by_lio_listio(void) { begin(); by_aio(1); }
#endif

static int other_file(void) {
    int other = memfd_create("other", 0);
    CHECK(other >= 0);
    return other;
}

static void through_a_file(int is_sendfile) {
    int other = open("other-file", O_RDWR | O_CREAT | O_EXCL, 0600);
    off_t from = AT, to = 0;
    CHECK(other >= 0 && unlink("other-file") == 0);
    begin();
    if (is_sendfile)
        CHECK(sendfile(other, fd, &from, BYTES) == BYTES);
    else
        CHECK(copy_file_range(fd, &from, other, &to, BYTES, 0) == BYTES);
    is_read(pread(other, buffer, BYTES, 0));
    prepare_write(0);
    CHECK(pwrite(other, buffer, BYTES, 0) == BYTES);
    store(2); /* the first has made it the kernel's already: each way by itself is `into` */
    from = 0, to = AT;
    if (is_sendfile)
        is_written(sendfile(at_place(), other, &from, BYTES));
    else
        is_written(copy_file_range(other, &from, fd, &to, BYTES, 0));
    finish();
}

static void by_sendfile(void) { through_a_file(1); }
static void by_copy_file_range(void) { through_a_file(0); }

static void into_by_sendfile(void) {
    int other = other_file();
    off_t from = 0;
    prepare_write(0);
    CHECK(write(other, buffer, BYTES) == BYTES);
    begin();
    is_written(sendfile(at_place(), other, &from, BYTES));
    finish();
}

static void into_by_copy_file_range(void) {
    int other = open("other-file", O_RDWR | O_CREAT | O_EXCL, 0600);
    off_t from = 0, to = AT;
    CHECK(other >= 0 && unlink("other-file") == 0);
    prepare_write(0);
    CHECK(write(other, buffer, BYTES) == BYTES);
    begin();
    is_written(copy_file_range(other, &from, fd, &to, BYTES, 0));
    finish();
}

static void by_splice(void) {
    int ends[2];
    off_t from = AT;
    CHECK(pipe(ends) == 0);
    begin();
    CHECK(splice(fd, &from, ends[1], NULL, BYTES, 0) == BYTES);
    is_read(read(ends[0], buffer, BYTES));
    finish();
}

static void into_by_splice(void) {
    int ends[2];
    off_t to = AT;
    CHECK(pipe(ends) == 0);
    prepare_write(0);
    CHECK(write(ends[1], buffer, BYTES) == BYTES);
    begin();
    is_written(splice(ends[0], NULL, fd, &to, BYTES, 0));
    finish();
}

static void by_lseek(void) {
    begin_with_holes();
    CHECK(lseek(fd, 0, SEEK_DATA) == MIB);
    /* What shares a folio of the page cache with data counts as such, and how large those are is the disk's read-ahead's. */
    CHECK(lseek(fd, MIB, SEEK_HOLE) >= MIB + PAGE && lseek(fd, 0, SEEK_END) == LEN);
    finish();
}

static void by_ioctl(void) {
    struct { struct fiemap head; struct fiemap_extent extents[8]; } extents = {0};
    begin_with_holes();
    extents.head.fm_length = LEN;
    extents.head.fm_flags = FIEMAP_FLAG_SYNC;
    extents.head.fm_extent_count = 8;
    if (ioctl(fd, FS_IOC_FIEMAP, &extents) == 0)
        CHECK(extents.head.fm_mapped_extents == 1 && extents.extents[0].fe_logical == MIB);
    finish();
}

/* Whether file systems can do it or not. */
static void by_clone(int is_range) {
    struct file_clone_range range = {0};
    int other = open("other-file", O_RDWR | O_CREAT | O_EXCL, 0600);
    CHECK(other >= 0 && unlink("other-file") == 0);
    begin();
    range.src_fd = fd;
    if ((is_range ? ioctl(other, FICLONERANGE, &range) : ioctl(other, FICLONE, fd)) == 0)
        is_read(pread(other, buffer, BYTES, AT));
    finish();
}

static void by_ficlone(void) { by_clone(0); }
static void by_ficlonerange(void) { by_clone(1); }

static void by_ftruncate(void) {
    begin();
    CHECK(ftruncate(fd, MIB + 100) == 0 && ftruncate(fd, LEN) == 0);
    memset(expected + MIB + 100, 0, LEN - MIB - 100);
    finish();
}

static void by_fallocate(void) {
    begin();
    CHECK(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, AT, BYTES) == 0);
    memset(expected + AT, 0, BYTES);
    finish();
}

static void by_posix_fallocate(void) {
    struct stat stat;
    begin_with_holes();
    CHECK(posix_fallocate(fd, 0, LEN) == 0 && fstat(fd, &stat) == 0 && stat.st_blocks >= LEN / 512);
    finish();
}

/* Waits, where it is told to, for an end that it does not survive. */
static void hold(void) {
    char byte;
    if (getenv("HOLD")) {
        puts("synced");
        fflush(stdout);
        CHECK(read(STDIN_FILENO, &byte, 1) == 0);
        _exit(0);
    }
}

#define SYNCS(name, call) \
    static void name(void) { begin(); CHECK((call) == 0); hold(); store(2); CHECK((call) == 0); finish(); }
SYNCS(by_fsync, fsync(fd))
SYNCS(by_fdatasync, fdatasync(fd))
SYNCS(by_sync_file_range, sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER))
SYNCS(by_sync, (sync(), 0))
SYNCS(by_syncfs, syncfs(fd))

/* What was stored before is not written after it, as seen by its time. */
static void is_timed(int result) {
    struct stat stat;
    CHECK(result == 0 && munmap(map, LEN) == 0 && close(fd) == 0);
    int reader = open(path, O_RDONLY);
    CHECK(reader >= 0 && fstat(reader, &stat) == 0 && stat.st_mtim.tv_sec == 1000);
    CHECK(fsync(reader) == 0 && close(reader) == 0);
    CHECK(lstat(path, &stat) == 0 && stat.st_mtim.tv_sec == 1000);
}

#define TIMES(name, call) static void name(void) { begin(); is_timed(call); }
static const struct timespec times[2] = {{1000, 0}, {1000, 0}};
TIMES(by_futimens, futimens(fd, times))
TIMES(by_utimensat, utimensat(AT_FDCWD, path, times, 0))
#ifndef BY_SYSCALL
static const struct timeval timevals[2] = {{1000, 0}, {1000, 0}};
static const struct utimbuf utimbuf = {1000, 1000};
TIMES(by_futimes, futimes(fd, timevals))
TIMES(by_futimesat, futimesat(AT_FDCWD, path, timevals))
TIMES(by_utimes, utimes(path, timevals))
TIMES(by_lutimes, lutimes(path, timevals))
TIMES(by_utime, utime(path, &utimbuf))
#endif

/* What is written for the program by this description would be appended. */
static void by_setfl(void) {
    begin();
    CHECK(fcntl(fd, F_SETFL, O_APPEND) == 0 && (fcntl(fd, F_GETFL) & O_APPEND));
    finish();
}

static void by_lease(void) {
    begin();
    CHECK(fcntl(fd, F_GETLEASE) == F_UNLCK);
    CHECK(fcntl(fd, F_SETLEASE, F_WRLCK) == 0 && fcntl(fd, F_GETLEASE) == F_WRLCK && fcntl(fd, F_SETLEASE, F_UNLCK) == 0);
    finish();
}

static void by_owner(void) {
    begin();
    CHECK(fcntl(fd, F_GETOWN) == 0 && fcntl(fd, F_SETOWN, getpid()) == 0 && fcntl(fd, F_GETOWN) == getpid());
    finish();
}

static void by_signal(void) {
    begin();
    CHECK(fcntl(fd, F_GETSIG) == 0 && fcntl(fd, F_SETSIG, SIGUSR1) == 0 && fcntl(fd, F_GETSIG) == SIGUSR1);
    finish();
}

/* What is not about contents goes on as it came, and all the while the map is one. */
static void by_nothing(void) {
    begin();
    struct flock lock = {.l_type = F_WRLCK};
    CHECK(fcntl(fd, F_GETFD) == 0 && fcntl(fd, F_SETLK, &lock) == 0 && lseek(fd, 5, SEEK_CUR) == 5);
    int other = dup(fd);
    CHECK(other >= 0 && fcntl(other, F_GETFL) == fcntl(fd, F_GETFL) && close(other) == 0);
    finish();
}

static void by_a_duplicate(void) {
    begin();
    int other = fcntl(fd, F_DUPFD, 100);
    CHECK(other >= 100);
    is_read(pread(other, buffer, BYTES, AT));
    CHECK(close(other) == 0);
    finish();
}

static void by_native_aio(void) {
    aio_context_t context = 0;
    struct iocb control = {.aio_fildes = 0, .aio_lio_opcode = IOCB_CMD_PREAD}, *list[] = {&control};
    struct io_event event;
    begin();
    CHECK(syscall(SYS_io_setup, 4, &context) == 0);
    control.aio_fildes = fd;
    control.aio_buf = (uintptr_t)buffer;
    control.aio_nbytes = BYTES;
    control.aio_offset = AT;
    CHECK(syscall(SYS_io_submit, context, 1, list) == 1 && syscall(SYS_io_getevents, context, 1, 1, &event, NULL) == 1);
    is_read(event.res);
    finish();
}

static void by_io_uring(void) {
    struct io_uring_params params = {0};
    begin();
    int ring = syscall(SYS_io_uring_setup, 4, &params);
    if (ring >= 0) { /* it may be forbidden */
        unsigned char *queues = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
        struct io_uring_sqe *entry = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
        if (queues == MAP_FAILED)
            queues = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
        CHECK(queues != MAP_FAILED && entry != MAP_FAILED && (params.features & IORING_FEAT_SINGLE_MMAP));
        *entry = (struct io_uring_sqe){.opcode = IORING_OP_READ, .fd = fd, .addr = (uintptr_t)buffer, .len = BYTES, .off = AT};
        ((unsigned *)(queues + params.sq_off.array))[0] = 0;
        __atomic_store_n((unsigned *)(queues + params.sq_off.tail), 1, __ATOMIC_RELEASE);
        CHECK(syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 1);
        is_read(((struct io_uring_cqe *)(queues + params.cq_off.cqes))->res);
    }
    finish();
}

/* What another process does by a descriptor: it sees what was stored, and writes. */
static int sees(int by) {
    for (size_t page = 0; page < PAGES; page += page >= 290 && page < 320 ? 1 : 3)
        for (size_t at = page * PAGE + 100; at < page * PAGE + 116; at++)
            if (pread(by, buffer, 1, at) != 1 || buffer[0] != value(at, 0)) {
                if (at < AT || at >= AT + BYTES)
                    return 0;
            }
    return 1;
}

static int another_writes(int by) {
    prepare_write(1);
    return pwrite(by, buffer, BYTES, AT) == BYTES;
}

static int acts(int by) {
    return sees(by) && another_writes(by);
}

static void another_has_written(void) {
    prepare_write(1);
    is_written(BYTES);
}

static void succeeded(pid_t child) {
    int status;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

static void by_fork(void) {
    begin();
    pid_t child = fork();
    if (child == 0)
        _exit(!acts(fd) || memcmp(map + AT, buffer, BYTES) != 0);
    succeeded(child);
    another_has_written();
    finish();
}

/* A child that maps the file itself by what it has inherited, and both write. */
static void by_maps_of_both(void) {
    begin();
    pid_t child = fork();
    if (child == 0) {
        unsigned char *own = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        prepare_write(1);
        if (own == MAP_FAILED || memcmp(own, expected, LEN) != 0)
            _exit(1);
        memcpy(own + AT, buffer, BYTES);
        _exit(0);
    }
    succeeded(child);
    another_has_written();
    CHECK(munmap(map, LEN) == 0);
    map_file(); /* anew, of what another process has had */
    child = fork();
    if (child == 0)
        _exit(pwrite(fd, "by a child", 10, 0) != 10);
    succeeded(child);
    memcpy(expected, "by a child", 10);
    finish();
}

#ifndef BY_SYSCALL
static void by__Fork(void) {
    begin();
    pid_t child = _Fork();
    if (child == 0)
        _exit(!acts(fd));
    succeeded(child);
    another_has_written();
    finish();
}

static int in_clone(void *argument) {
    (void)argument;
    return !acts(fd);
}

static void by_clone_of(int flags) {
    static _Alignas(64) char stack[256 * 1024];
    begin();
    succeeded(clone(in_clone, stack + sizeof stack, flags | SIGCHLD, NULL));
    another_has_written();
    finish();
}

static void by_clone_apart(void) { by_clone_of(0); }
static void by_clone_together(void) { by_clone_of(CLONE_VM | CLONE_VFORK); }
static void by_clone_with_table(void) { by_clone_of(CLONE_FILES); }

static char number[16];

static void set_number(void) {
    begin();
    snprintf(number, sizeof number, "%d", fd);
}

static void by_vfork(void) {
    set_number();
    pid_t child = vfork();
    if (child == 0) {
        execl(self, self, "acts", path, number, NULL);
        _exit(1);
    }
    succeeded(child);
    another_has_written();
    child = vfork(); /* and again, without exec */
    if (child == 0)
        _exit(7);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 7);
    finish();
}

static void spawned(int is_found) {
    set_number();
    char *arguments[] = {(char *)self, "acts", (char *)path, number, NULL};
    pid_t child;
    CHECK((is_found ? posix_spawnp : posix_spawn)(&child, self, NULL, NULL, arguments, environ) == 0);
    succeeded(child);
    another_has_written();
    finish();
}

/* A descriptor that is not inherited by itself. */
static void by_actions(void) {
    posix_spawn_file_actions_t actions;
    char *arguments[] = {(char *)self, "acts", (char *)path, "99", NULL};
    pid_t child;
    begin();
    CHECK(fcntl(fd, F_SETFD, FD_CLOEXEC) == 0);
    CHECK(posix_spawn_file_actions_init(&actions) == 0 && posix_spawn_file_actions_adddup2(&actions, fd, 99) == 0);
    CHECK(posix_spawn(&child, self, &actions, NULL, arguments, environ) == 0);
    succeeded(child);
    another_has_written();
    finish();
}

static void by_posix_spawn(void) { spawned(0); }
static void by_posix_spawnp(void) { spawned(1); }

static const char *in_shell(void) {
    static char command[PATH_MAX];
    set_number();
    snprintf(command, sizeof command, "%s acts %s %s", self, path, number);
    return command;
}

static void by_system(void) {
    CHECK(system(in_shell()) == 0);
    another_has_written();
    finish();
}

static void by_popen(void) {
    FILE *stream = popen(in_shell(), "r");
    CHECK(stream && pclose(stream) == 0);
    another_has_written();
    finish();
}

/* A descriptor that no program inherits: what is started may do by the file's name what it does, and the map goes on to be served. */
static void beside_programs(void) {
    char command[PATH_MAX];
    begin();
    CHECK(fcntl(fd, F_SETFD, FD_CLOEXEC) == 0);
    snprintf(command, sizeof command, "%s acts %s %d", self, path, fd);
    CHECK(system(command) != 0 && system("exit 3") == 3 << 8);
    pid_t child;
    CHECK(posix_spawnp(&child, "true", NULL, NULL, ((char *[]){"true", NULL}), environ) == 0);
    succeeded(child);
    FILE *stream = popen("echo 5", "r");
    CHECK(stream && fgets(command, sizeof command, stream) && strcmp(command, "5\n") == 0 && pclose(stream) == 0);
    finish();
}

static void by_wordexp(void) {
    wordexp_t words;
    char text[PATH_MAX + 8];
    snprintf(text, sizeof text, "$(%s)", in_shell());
    CHECK(wordexp(text, &words, 0) == 0);
    another_has_written();
    finish();
}

/* The program that is executed sees it, by the descriptor that it inherits. */
#define EXECUTES(name, call) static void name(void) { set_number(); call; fail(#call); }
#define ARGUMENTS ((char *[]){(char *)self, "sees", (char *)path, number, NULL})
EXECUTES(by_execl, execl(self, self, "sees", path, number, NULL))
EXECUTES(by_execl_of_many, execl(self, self, "sees", path, number, "4", "5", "6", "7", "8", "9", NULL))
EXECUTES(by_execle, execle(self, self, "sees", path, number, NULL, environ))
EXECUTES(by_execle_of_many, execle(self, self, "sees", path, number, "4", "5", "6", "7", "8", "9", NULL, ((char *[]){"MANY=9", NULL})))
EXECUTES(by_execlp, execlp(self, self, "sees", path, number, NULL))
EXECUTES(by_execv, execv(self, ARGUMENTS))
EXECUTES(by_execvp, execvp(self, ARGUMENTS))
EXECUTES(by_execvpe, execvpe(self, ARGUMENTS, environ))
EXECUTES(by_fexecve, fexecve(open(self, O_RDONLY), ARGUMENTS, environ))

/* One that is not there: the program goes on. */
static void by_failed_exec(void) {
    set_number();
    CHECK(execl("/nonexistent", "nonexistent", NULL) == -1 && errno == ENOENT);
    CHECK(execlp("nonexistent-program", "nonexistent", NULL) == -1 && errno == ENOENT);
    finish();
}
#else
#define EXECUTES(name, call) static void name(void) { begin(); snprintf(number, sizeof number, "%d", fd); call; fail(#call); }
static char number[16];
#define ARGUMENTS ((char *[]){(char *)self, "sees", (char *)path, number, NULL})
#endif
EXECUTES(by_execve, execve(self, ARGUMENTS, environ))
EXECUTES(by_execveat, execveat(AT_FDCWD, self, ARGUMENTS, environ, 0))

/* A message with a descriptor, or room for one. */
static struct msghdr *message_of(int descriptor) {
    static struct msghdr message;
    static union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr head; } control;
    static char byte = 'x';
    static struct iovec part = {&byte, 1};
    message = (struct msghdr){.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    control.head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(&control.head), &descriptor, sizeof descriptor);
    return &message;
}

static int carried_by(struct msghdr *message) {
    int descriptor = -1;
    CHECK(CMSG_FIRSTHDR(message) && CMSG_FIRSTHDR(message)->cmsg_type == SCM_RIGHTS);
    memcpy(&descriptor, CMSG_DATA(CMSG_FIRSTHDR(message)), sizeof descriptor);
    return descriptor;
}

/* Started before the file is open: it has the descriptor by the message alone. */
static void sent(int is_list) {
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    pid_t child = fork();
    if (child == 0) {
        struct msghdr *message = message_of(-1);
        _exit(recvmsg(ends[1], message, 0) != 1 || !acts(carried_by(message)));
    }
    begin();
    if (is_list) {
        struct mmsghdr list = {.msg_hdr = *message_of(fd)};
        CHECK(sendmmsg(ends[0], &list, 1, 0) == 1);
    } else
        CHECK(sendmsg(ends[0], message_of(fd), 0) == 1);
    succeeded(child);
    another_has_written();
    finish();
}

static void by_sendmsg(void) { sent(0); }
static void by_sendmmsg(void) { sent(1); }

/* A file that another process has sent is written by that one, too, while it is mapped here. */
static void received(int how) {
    int ends[2], from_child[2];
    char byte;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0 && pipe(from_child) == 0);
    pid_t child = fork();
    if (child == 0) {
        int own = open(path, O_RDWR);
        CHECK(dup2(own, 99) == 99);
        CHECK(how == 2 ? write(ends[1], "x", 1) == 1 : sendmsg(ends[1], message_of(own), 0) == 1);
        CHECK(read(ends[1], &byte, 1) == 1);
        _exit(!acts(own));
    }
    if (how == 0) {
        struct msghdr *message = message_of(-1);
        CHECK(recvmsg(ends[0], message, 0) == 1);
        fd = carried_by(message);
    } else if (how == 1) {
        struct mmsghdr list = {.msg_hdr = *message_of(-1)};
        CHECK(recvmmsg(ends[0], &list, 1, 0, NULL) == 1);
        fd = carried_by(&list.msg_hdr);
    } else {
        CHECK(read(ends[0], &byte, 1) == 1);
        int process = syscall(SYS_pidfd_open, child, 0);
        CHECK(process >= 0);
        fd = syscall(SYS_pidfd_getfd, process, 99, 0);
    }
    CHECK(fd >= 0);
    map_file();
    store(0);
    CHECK(write(ends[0], "x", 1) == 1);
    succeeded(child);
    another_has_written();
    finish();
}

static void by_recvmsg(void) { received(0); }
static void by_recvmmsg(void) { received(1); }
static void by_pidfd_getfd(void) { received(2); }

/* Another thread has descriptors of its own, where the same number is another file. */
static void *parted(void *argument) {
    int other = other_file(), *by = argument;
    CHECK(unshare(CLONE_FILES) == 0 && dup2(fd, 200) == 200 && dup2(other, fd) == fd);
    *by = pread(200, buffer, BYTES, AT);
    return NULL;
}

static void by_unshare(void) {
    pthread_t thread;
    int result;
    begin();
    CHECK(pthread_create(&thread, NULL, parted, &result) == 0 && pthread_join(thread, NULL) == 0);
    is_read(result);
    finish();
}

/* Maps a file again and again while another thread writes it by its descriptor: what was written before it looks is seen. */
static volatile uint32_t last_written, stop;

static void *writes_for_ever(void *argument) {
    for (uint32_t count = 1; !stop; count++) {
        if (pwrite(*(int *)argument, &count, sizeof count, AT) != sizeof count)
            return argument;
        __atomic_store_n(&last_written, count, __ATOMIC_SEQ_CST);
        if (count % 64 == 0)
            usleep(100); /* it may be served meanwhile */
    }
    return NULL;
}

static void beside_a_writer(void) {
    int owns[40];
    for (int round = 0; round < 40; round++) {
        pthread_t thread;
        void *failed;
        int own = open("another", O_RDWR | O_CREAT | O_EXCL, 0600);
        CHECK(own >= 0 && ftruncate(own, LEN) == 0 && unlink("another") == 0);
        last_written = stop = 0;
        CHECK(pthread_create(&thread, NULL, writes_for_ever, &own) == 0);
        usleep(round * 50);
        for (int time = 0; time < 4; time++) {
            unsigned char *shown = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, own, 0);
            CHECK(shown != MAP_FAILED);
            for (int look = 0; look < 20; look++) {
                uint32_t before = __atomic_load_n(&last_written, __ATOMIC_SEQ_CST), seen;
                memcpy(&seen, (void *)(shown + AT), sizeof seen);
                CHECK(seen >= before);
            }
            CHECK(munmap(shown, LEN) == 0);
        }
        stop = 1;
        CHECK(pthread_join(thread, &failed) == 0 && !failed);
        owns[round] = own; /* open still: another one with its number would be taken for it */
    }
    for (int round = 0; round < 40; round++)
        CHECK(close(owns[round]) == 0);
    begin();
    finish();
}

#ifndef BY_SYSCALL
/* Threads that are cancelled while they wait in such a call, more of them than anybody may have room for. */
static int never_written[2];

static void *waits(void *argument) {
    char byte;
    return read(never_written[0], &byte, 1) == 1 ? argument : NULL;
}

static void beside_cancelled_threads(void) {
    CHECK(pipe(never_written) == 0);
    for (int round = 0; round < 40; round++) {
        pthread_t threads[10];
        void *result;
        for (int index = 0; index < 10; index++)
            CHECK(pthread_create(&threads[index], NULL, waits, NULL) == 0);
        for (int index = 0; index < 10; index++)
            CHECK(pthread_cancel(threads[index]) == 0);
        for (int index = 0; index < 10; index++)
            CHECK(pthread_join(threads[index], &result) == 0 && result == PTHREAD_CANCELED);
    }
    begin();
    is_read(pread(fd, buffer, BYTES, AT));
    finish();
}
#endif

static const struct { const char *name; void (*run)(void); } all[] = {
#define ONE(name) {#name, name}
    ONE(by_nothing), ONE(by_read), ONE(by_readv), ONE(by_pread), ONE(by_preadv), ONE(by_preadv2), ONE(by_write), ONE(by_writev),
    ONE(by_pwrite), ONE(by_pwritev), ONE(by_pwritev2), ONE(by_sendfile), ONE(by_copy_file_range), ONE(into_by_sendfile),
    ONE(into_by_copy_file_range), ONE(by_splice), ONE(into_by_splice), ONE(by_lseek), ONE(by_ioctl), ONE(by_ficlone), ONE(by_ficlonerange),
    ONE(by_ftruncate), ONE(by_fallocate), ONE(by_posix_fallocate), ONE(by_fsync), ONE(by_fdatasync), ONE(by_sync_file_range),
    ONE(by_sync), ONE(by_syncfs), ONE(by_futimens), ONE(by_utimensat), ONE(by_setfl), ONE(by_lease), ONE(by_owner), ONE(by_signal),
    ONE(by_a_duplicate), ONE(by_native_aio), ONE(by_io_uring), ONE(by_fork), ONE(by_maps_of_both), ONE(by_execve), ONE(by_execveat),
    ONE(by_sendmsg), ONE(by_sendmmsg), ONE(by_recvmsg), ONE(by_recvmmsg), ONE(by_pidfd_getfd), ONE(by_unshare),
    ONE(beside_a_writer),
#ifndef BY_SYSCALL
    ONE(beside_cancelled_threads), ONE(by_read_chk), ONE(by_pread_chk), ONE(by_pread64_chk), ONE(by___read), ONE(by_pread64), ONE(by___pread64), ONE(by_preadv64),
    ONE(by_preadv64v2), ONE(by___write), ONE(by_pwrite64), ONE(by___pwrite64), ONE(by_pwritev64), ONE(by_pwritev64v2), ONE(by_dprintf),
    ONE(by_dprintf_chk), ONE(by_vdprintf), ONE(by_vdprintf_chk), ONE(by_fdopen), ONE(by_fileno), ONE(by_fileno_unlocked),
    ONE(by_aio_read), ONE(by_lio_listio), ONE(by_futimes), ONE(by_futimesat), ONE(by_utimes), ONE(by_lutimes), ONE(by_utime), ONE(by__Fork),
    ONE(by_clone_apart), ONE(by_clone_together), ONE(by_clone_with_table), ONE(by_vfork), ONE(by_posix_spawn), ONE(by_posix_spawnp), ONE(by_actions),
    ONE(by_system), ONE(beside_programs), ONE(by_popen), ONE(by_wordexp), ONE(by_execl), ONE(by_execl_of_many), ONE(by_execle), ONE(by_execle_of_many),
    ONE(by_execlp), ONE(by_execv), ONE(by_execvp), ONE(by_execvpe), ONE(by_fexecve), ONE(by_failed_exec),
#endif
};

int main(int count, char **arguments) {
    if (count < 2)
        return 2;
    self = arguments[0];
    if (strcmp(arguments[1], "list") == 0) {
        for (size_t index = 0; index < sizeof all / sizeof *all; index++)
            puts(all[index].name);
        return 0;
    }
    if (count < 3)
        return 2;
    path = arguments[2];
    alarm(60);
    /* What others run, with the number of the descriptor. */
    if (strcmp(arguments[1], "acts") == 0)
        return count < 4 || !acts(atoi(arguments[3]));
    if (strcmp(arguments[1], "sees") == 0) {
        CHECK(count == 4 || (count == 10 && strcmp(arguments[9], "9") == 0));
        CHECK(!getenv("MANY") || (strcmp(getenv("MANY"), "9") == 0 && !getenv("PATH")));
        CHECK(sees(atoi(arguments[3])));
        puts("right");
        return 0;
    }
    for (size_t index = 0; index < sizeof all / sizeof *all; index++)
        if (strcmp(arguments[1], all[index].name) == 0) {
            all[index].run();
            puts("right");
            return 0;
        }
    return 2;
}
