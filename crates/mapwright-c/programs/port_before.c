/* A program that uses mmap(2), as many are: it capitalizes the lines of a file in place, and counts. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int fail(const char *what) {
    printf("%s: %s\n", what, strerror(errno));
    return 1;
}

static int capitalize(const char *path, off_t room) {
    struct stat status;
    int fd = open(path, O_RDWR);
    if (fd < 0 || fstat(fd, &status) < 0) return fail(path);
    size_t length = (size_t)(status.st_size + room);
    if (ftruncate(fd, (off_t)length) < 0) return fail("ftruncate");

    char *text = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (text == MAP_FAILED) return fail("mmap");
    close(fd);
    madvise(text, length, MADV_SEQUENTIAL);
    size_t lines = 0;
    for (size_t at = 0; at < length; at++) {
        if (at == 0 || text[at - 1] == '\n') text[at] = (char)toupper((unsigned char)text[at]);
        lines += text[at] == '\n';
    }
    int used = snprintf(text + status.st_size, (size_t)room, "%zu lines\n", lines);
    if (msync(text, length, MS_SYNC) < 0) return fail("msync");
    printf("%zu lines, %d bytes added\n", lines, used);
    return munmap(text, length) < 0 ? fail("munmap") : 0;
}

static int print(const char *path) {
    unsigned long sum = 0;
    struct stat status;
    unsigned char resident[64];
    int fd = open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &status) < 0) return fail(path);
    size_t length = (size_t)status.st_size;
    const unsigned char *text = mmap(NULL, length, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
    if (text == MAP_FAILED) return fail("mmap");
    if (mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED) return 1;
    printf("mapping it for writing: %s\n", strerror(errno));
    for (size_t at = 0; at < length; at++) sum = sum * 31 + text[at];
    if (mincore((void *)text, 64 * 4096, resident) < 0) return fail("mincore");
    printf("%zu bytes, sum %lu, begins with %.20s, page 7 in memory: %d\n", length, sum, (const char *)text, resident[7] & 1);
    close(fd);
    return munmap((void *)text, length) < 0 ? fail("munmap") : 0;
}

int main(int count, char **arguments) {
    if (count != 2) return 2;
    if (capitalize("no such file", 0) != 1) return 1;
    return capitalize(arguments[1], 100) || print(arguments[1]);
}
