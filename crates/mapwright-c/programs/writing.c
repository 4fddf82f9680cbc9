/* Maps for writing: what reaches the file and when, who is kept out, threads, resizing. */
#include <pthread.h>

#include "check.h"

#define LENGTH (20 * PAGE)

static void *write_a_page(void *argument) {
    void **with = argument;
    char page[PAGE];
    size_t number = *(size_t *)with[1];
    memset(page, 'a' + (int)number, sizeof page);
    for (int i = 0; i < 10; i++) OK(mapwright_map_write_at(with[0], number * PAGE, page, sizeof page));
    FAILS(-ERANGE, mapwright_map_write_at(with[0], UINT64_MAX, page, 1)); /* each thread has its own last error */
    CHECK(strlen(mapwright_last_error()) > 0);
    return NULL;
}

static void threads(mapwright_map *map) {
    pthread_t threads[4];
    size_t numbers[4];
    void *with[4][2];
    for (size_t i = 0; i < 4; i++) {
        numbers[i] = i + 4;
        with[i][0] = map, with[i][1] = &numbers[i];
        CHECK(pthread_create(&threads[i], NULL, write_a_page, with[i]) == 0);
    }
    for (size_t i = 0; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    char byte;
    for (size_t i = 0; i < 4; i++) {
        OK(mapwright_map_read_at(map, (i + 5) * PAGE - 1, &byte, 1));
        CHECK(byte == 'a' + (int)(i + 4));
    }
}

int main(void) {
    mapwright_options *options = make_options(4 << 20);
    mapwright_map *map, *other;
    FAILS(-ENOENT, mapwright_map_open_mut("no such file", options, &map));
    OK(mapwright_map_open_mut(make_file("file", LENGTH), options, &map));
    FAILS(-EBUSY, mapwright_map_open_mut("file", options, &other));
    CHECK(other == NULL);

    OK(mapwright_map_write_at(map, 10, "hello", 5));
    CHECK(!file_has("file", 10, "hello", 5)); /* not before a flush */
    OK(mapwright_map_flush(map, 0, 0));
    CHECK(file_has("file", 10, "hello", 5));
    CHECK(mapwright_map_acknowledge(map) == 0);

    void *data, *moved;
    OK(mapwright_map_data(map, &data, NULL));
    memcpy((char *)data + 9000, "touched", 7); /* a store to memory counts as well */
    OK(mapwright_map_flush(map, 8192, PAGE));
    CHECK(file_has("file", 9000, "touched", 7));

    threads(map);
    char page[PAGE];
    memset(page, 'z', sizeof page);
    OK(mapwright_map_overwrite(map, 12 * PAGE, page, sizeof page));
    FAILS(-ERANGE, mapwright_map_write_at(map, LENGTH - 1, "ab", 2));
    FAILS(-EFAULT, mapwright_map_write_at(map, 0, NULL, 1));

    mapwright_pin *pin;
    OK(mapwright_map_get(map, 0, 100, &pin, NULL));
    FAILS(-EBUSY, mapwright_map_resize(map, 2 * LENGTH));
    OK(mapwright_pin_release(pin));
    OK(mapwright_map_resize(map, 2 * LENGTH + 5));
    OK(mapwright_map_data(map, &moved, NULL));
    CHECK(moved == data && mapwright_map_length(map) == 2 * LENGTH + 5);
    OK(mapwright_map_write_at(map, 2 * LENGTH, "tail!", 5));
    CHECK(file_length("file") == LENGTH); /* at the next flush */
    OK(mapwright_map_close(map));         /* which this is */
    CHECK(file_length("file") == 2 * LENGTH + 5 && file_has("file", 2 * LENGTH, "tail!", 5));
    CHECK(file_has("file", 12 * PAGE, page, sizeof page) && file_has("file", 30 * PAGE, "\0\0", 2));

    /* Somebody cuts the file: the flush says so, twice until it is acknowledged. */
    OK(mapwright_map_open_mut("file", options, &map));
    OK(mapwright_map_write_at(map, LENGTH, "lost", 4));
    CHECK(truncate("file", PAGE) == 0);
    FAILS(MAPWRIGHT_ERR_CHANGED, mapwright_map_flush(map, 0, 0));
    FAILS(MAPWRIGHT_ERR_LATCHED, mapwright_map_flush(map, 0, 0));
    CHECK(mapwright_map_acknowledge(map) == 1 && strstr(mapwright_last_error(), "truncated") != NULL);
    FAILS(MAPWRIGHT_ERR_CHANGED, mapwright_map_close(map)); /* and it is closed */
    FAILS(-EBADF, mapwright_map_close(map));

    /* The kernel's own mapping has the same functions. */
    OK(mapwright_options_set_strategy(options, MAPWRIGHT_STRATEGY_KERNEL));
    OK(mapwright_map_open_mut(make_file("other", 2 * PAGE), options, &map));
    OK(mapwright_map_write_at(map, 5, "kernel", 6));
    OK(mapwright_map_flush(map, 0, PAGE));
    OK(mapwright_map_close(map));
    CHECK(file_has("other", 5, "kernel", 6));

    int fd = open("other", O_RDWR);
    OK(mapwright_map_open_fd(fd, 1, options, &map));
    close(fd);
    OK(mapwright_map_write_at(map, 0, "by fd", 5));
    OK(mapwright_map_close(map));
    CHECK(file_has("other", 0, "by fd", 5));
    OK(mapwright_options_close(options));
    puts("writing: ok");
    return 0;
}
