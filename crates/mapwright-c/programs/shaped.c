/* The functions shaped like mmap(2) and its like. */
#include "check.h"

#define LENGTH (16 * PAGE + 100)

static void reading(void) {
    int fd = open(make_file("file", LENGTH), O_RDONLY);
    unsigned char *all = mapwright_mmap(NULL, LENGTH, PROT_READ, MAP_PRIVATE, fd, 0);
    CHECK(all != MAP_FAILED);
    unsigned char *part = mapwright_mmap(NULL, 100, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 3 * PAGE);
    CHECK(part != MAP_FAILED);
    FAILS_ERRNO(EACCES, mapwright_mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
    int writable = open("file", O_RDWR);
    FAILS_ERRNO(EBUSY, mapwright_mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, writable, 0));
    close(writable);
    close(fd); /* the mappings stay */
    for (size_t at = 0; at < LENGTH; at++) CHECK(all[at] == byte_at(at));
    CHECK(part[99] == byte_at(3 * PAGE + 99));
    CHECK(all[LENGTH] == 0 && all[17 * PAGE - 1] == 0); /* the rest of the last page */

    unsigned char vector[17], none[17] = {0};
    CHECK(mapwright_madvise(all, 17 * PAGE, MADV_RANDOM) == 0);
    for (int tries = 0; tries < 1000; tries++) {
        CHECK(mapwright_madvise(all, LENGTH, MADV_DONTNEED) == 0);
        usleep(1000); /* read-ahead that was begun may still come in */
        CHECK(mapwright_mincore(all, LENGTH, vector) == 0);
        if (memcmp(vector, none, sizeof none) == 0) break;
    }
    CHECK(memcmp(vector, none, sizeof none) == 0);
    CHECK(mapwright_madvise(all + 4 * PAGE, PAGE, MADV_POPULATE_READ) == 0);
    CHECK(mapwright_mincore(all, LENGTH, vector) == 0);
    CHECK(vector[3] == 0 && vector[4] == 1 && vector[5] == 0);
    FAILS_ERRNO(EFAULT, mapwright_mincore(all, LENGTH, NULL));
    FAILS_ERRNO(EINVAL, mapwright_madvise(all, LENGTH, MADV_DONTFORK));
    CHECK(mapwright_mprotect(all, LENGTH, PROT_READ) == 0);
    FAILS_ERRNO(EACCES, mapwright_mprotect(all, LENGTH, PROT_READ | PROT_WRITE));
    FAILS_ERRNO(EOPNOTSUPP, mapwright_mprotect(all, LENGTH, PROT_NONE));
    CHECK(mapwright_msync(all, LENGTH, MS_SYNC) == 0); /* nothing to do */

    /* A hole in the middle, and what is left. */
    CHECK(mapwright_munmap(part, 100) == 0);
    CHECK(mapwright_munmap(all + 5 * PAGE, 2 * PAGE) == 0);
    FAILS_ERRNO(ENOMEM, mapwright_madvise(all, LENGTH, MADV_NORMAL));
    FAILS_ERRNO(EINVAL, mapwright_munmap(all + 5 * PAGE, 2 * PAGE)); /* twice */
    CHECK(mapwright_madvise(all, 5 * PAGE, MADV_WILLNEED) == 0);
    CHECK(all[5 * PAGE - 1] == byte_at(5 * PAGE - 1) && all[7 * PAGE] == byte_at(7 * PAGE));
    CHECK(mapwright_munmap(all, 17 * PAGE) == 0); /* both rests */
    FAILS_ERRNO(EINVAL, mapwright_munmap(all, 17 * PAGE));
}

static void refused(void) {
    int fd = open("file", O_RDWR);
    FAILS_ERRNO(EINVAL, mapwright_mmap(&fd, PAGE, PROT_READ, MAP_SHARED, fd, 0));
    FAILS_ERRNO(EINVAL, mapwright_mmap(NULL, 0, PROT_READ, MAP_SHARED, fd, 0));
    FAILS_ERRNO(EINVAL, mapwright_mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 1));
    FAILS_ERRNO(EINVAL, mapwright_mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, -PAGE));
    FAILS_ERRNO(EINVAL, mapwright_mmap(NULL, PAGE, PROT_READ, 0, fd, 0));
    FAILS_ERRNO(EOPNOTSUPP, mapwright_mmap(NULL, PAGE, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0));
    FAILS_ERRNO(EOPNOTSUPP, mapwright_mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    FAILS_ERRNO(EOPNOTSUPP, mapwright_mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0));
    FAILS_ERRNO(EOPNOTSUPP, mapwright_mmap(NULL, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0));
    FAILS_ERRNO(EOPNOTSUPP, mapwright_mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE, fd, 0));
    FAILS_ERRNO(EOPNOTSUPP, mapwright_mmap(NULL, PAGE, PROT_READ, MAP_SHARED | MAP_LOCKED, fd, 0));
    FAILS_ERRNO(ENXIO, mapwright_mmap(NULL, 18 * PAGE, PROT_READ, MAP_SHARED, fd, 0));
    FAILS_ERRNO(ENXIO, mapwright_mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 17 * PAGE));
    FAILS_ERRNO(EBADF, mapwright_mmap(NULL, PAGE, PROT_READ, MAP_SHARED, -1, 0));
    FAILS_ERRNO(ENXIO, mapwright_mmap(NULL, SIZE_MAX - 2 * PAGE, PROT_READ, MAP_SHARED, fd, 0));
    FAILS_ERRNO(ENOMEM, mapwright_mmap(NULL, SIZE_MAX, PROT_READ, MAP_SHARED, fd, 0));
    close(fd);
    fd = open("file", O_WRONLY);
    FAILS_ERRNO(EACCES, mapwright_mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0));
    close(fd);
    fd = open("/", O_RDONLY);
    FAILS_ERRNO(ENODEV, mapwright_mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0));
    close(fd);
    FAILS_ERRNO(EINVAL, mapwright_munmap((void *)1, PAGE));
    FAILS_ERRNO(EINVAL, mapwright_munmap(NULL, 0));
    FAILS_ERRNO(EINVAL, mapwright_munmap((void *)PAGE, PAGE));
    FAILS_ERRNO(ENOMEM, mapwright_msync((void *)PAGE, PAGE, MS_SYNC));
    FAILS_ERRNO(EINVAL, mapwright_msync((void *)PAGE, PAGE, MS_SYNC | MS_ASYNC));
    FAILS_ERRNO(EINVAL, mapwright_mremap((void *)PAGE, PAGE, 2 * PAGE, MREMAP_MAYMOVE));

    mapwright_options *options;
    OK(mapwright_options_new(&options));
    OK(mapwright_options_set_range(options, 0, 100));
    FAILS(-EINVAL, mapwright_mmap_options(options));
    OK(mapwright_options_set_range(options, 0, 0));
    OK(mapwright_options_set_strategy(options, MAPWRIGHT_STRATEGY_BUFFER));
    FAILS(-EINVAL, mapwright_mmap_options(options));
    OK(mapwright_options_close(options));
}

static void writing(void) {
    int fd = open(make_file("written", 4 * PAGE), O_RDWR);
    char *data = mapwright_mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(data != MAP_FAILED);
    const char *same = mapwright_mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, PAGE); /* readers share it */
    CHECK(same != MAP_FAILED);
    close(fd);
    memcpy(data + PAGE, "shared", 6);
    CHECK(memcmp(same, "shared", 6) == 0);
    CHECK(mapwright_msync(data, 4 * PAGE, MS_ASYNC) == 0);
    CHECK(!file_has("written", PAGE, "shared", 6));
    CHECK(mapwright_msync(data + PAGE, PAGE, MS_SYNC) == 0);
    CHECK(file_has("written", PAGE, "shared", 6));
    CHECK(mapwright_mprotect(data, PAGE, PROT_READ | PROT_WRITE) == 0);
    FAILS_ERRNO(EOPNOTSUPP, mapwright_mprotect(data, PAGE, PROT_READ));
    CHECK(mapwright_madvise(data, 4 * PAGE, MADV_DONTNEED) == 0); /* no change is lost */

    CHECK(mapwright_mremap(data, 4 * PAGE, 6 * PAGE + 10, MREMAP_MAYMOVE) == data);
    memcpy(data + 6 * PAGE, "grown", 5);
    CHECK(mapwright_mremap(data, 7 * PAGE, 6 * PAGE, 0) == data); /* shorter: the file is not */
    FAILS_ERRNO(EINVAL, mapwright_mremap(data, 7 * PAGE, 8 * PAGE, 0));
    FAILS_ERRNO(EINVAL, mapwright_mremap(data, 6 * PAGE, 0, 0));
    memcpy(data + 5 * PAGE, "last", 4);
    CHECK(mapwright_munmap((void *)same, PAGE) == 0);
    CHECK(!file_has("written", 5 * PAGE, "last", 4));
    CHECK(mapwright_munmap(data, 6 * PAGE) == 0); /* the last of it: flushed */
    CHECK(file_length("written") == 6 * PAGE + 10);
    CHECK(file_has("written", 6 * PAGE, "grown", 5) && file_has("written", 5 * PAGE, "last", 4));

    /* What can't be written stays mapped, and is told. */
    fd = open("written", O_RDWR);
    data = mapwright_mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(data != MAP_FAILED);
    data[0] = 'x';
    CHECK(ftruncate(fd, 0) == 0);
    FAILS_ERRNO(ESTALE, mapwright_munmap(data, PAGE));
    CHECK(mapwright_last_error_code() == MAPWRIGHT_ERR_CHANGED);
    FAILS_ERRNO(ESTALE, mapwright_msync(data, PAGE, MS_SYNC)); /* not the latched one: it tried again */
    CHECK(data[0] == 'x');
    CHECK(ftruncate(fd, 6 * PAGE + 10) == 0);
    CHECK(mapwright_msync(data, PAGE, MS_SYNC) == 0);
    CHECK(mapwright_munmap(data, PAGE) == 0);
    CHECK(file_has("written", 0, "x", 1));
    close(fd);
}

int main(void) {
    mapwright_options *options = make_options(4 << 20);
    OK(mapwright_mmap_options(options));
    OK(mapwright_options_close(options)); /* a copy is kept */
    reading();
    refused();
    writing();
    puts("shaped: ok");
    return 0;
}
