/* What the kernel has of a file in its page cache. */
#include "check.h"

int main(void) {
    unsigned char resident[10];
    int fd = open(make_file("file", 10 * PAGE), O_RDWR);
    CHECK(fd >= 0);
    CHECK(mapwright_cache_residency(fd, 0, 10 * PAGE, resident, sizeof resident) == 10);
    for (int page = 0; page < 10; page++) CHECK(resident[page] == 1); /* just written */
    CHECK(mapwright_cache_residency(fd, 4095, 2, resident, sizeof resident) == 2);
    FAILS(-EINVAL, mapwright_cache_residency(fd, 0, 10 * PAGE, resident, 9));
    FAILS(-ERANGE, mapwright_cache_residency(fd, UINT64_MAX, 2, resident, 9));
    FAILS(-EBADF, mapwright_cache_residency(-1, 0, PAGE, resident, 9));

    mapwright_cache_stats stats;
    stats.size = sizeof stats;
    int returned = mapwright_cache_stat(fd, 0, 10 * PAGE, &stats);
    if (returned == -EOPNOTSUPP) {
        puts("cache: no cachestat(2) here"); /* before Linux 6.5, and under valgrind 3.19 */
    } else {
        OK(returned);
        CHECK(stats.size == sizeof stats && stats.cached == 10);
        stats.size = 3;
        FAILS(-EINVAL, mapwright_cache_stat(fd, 0, PAGE, &stats));
        FAILS(-EFAULT, mapwright_cache_stat(fd, 0, PAGE, NULL));
    }
    close(fd);
    puts("cache: ok");
    return 0;
}
