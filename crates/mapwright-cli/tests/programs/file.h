/* The file that a program of the tests maps, and what it says when something is not as it should be. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE 4096
#define MIB (1 << 20)

static const char *path;
static size_t len;

static void fail(const char *what) {
    printf("wrong: %s (errno %d: %s)\n", what, errno, strerror(errno));
    fflush(stdout);
    _exit(1);
}

#define CHECK(holds) do { if (!(holds)) fail(#holds); } while (0)

static int open_file(int flags) {
    int fd = open(path, flags);
    struct stat stat;
    CHECK(fd >= 0 && fstat(fd, &stat) == 0);
    len = stat.st_size;
    return fd;
}
