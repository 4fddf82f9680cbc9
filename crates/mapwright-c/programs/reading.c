/* Maps for reading: options, memory, copies, pins, checked scopes, residency, counters, and what a truncated file is. */
#include "check.h"

#define LENGTH (100 * PAGE + 123)

static void sum(const void *data, size_t length, void *user) {
    unsigned long *total = user;
    for (size_t at = 0; at < length; at++) *total += ((const unsigned char *)data)[at];
}

static void close_inside(const void *data, size_t length, void *user) {
    (void)data, (void)length;
    FAILS(-EBUSY, mapwright_map_close(user));
}

static void bytes(mapwright_map *map) {
    unsigned char copy[300];
    OK(mapwright_map_read_at(map, 8000, copy, sizeof copy));
    for (size_t at = 0; at < sizeof copy; at++) CHECK(copy[at] == byte_at(8000 + at));
    FAILS(-ERANGE, mapwright_map_read_at(map, LENGTH - 10, copy, 11));
    FAILS(-ERANGE, mapwright_map_read_at(map, UINT64_MAX, copy, 2));
    FAILS(-EFAULT, mapwright_map_read_at(map, 0, NULL, 1));
    FAILS(-EINVAL, mapwright_map_read_at(map, 0, copy, SIZE_MAX));
    OK(mapwright_map_read_at(map, LENGTH, NULL, 0));

    void *data;
    size_t length;
    OK(mapwright_map_data(map, &data, &length));
    CHECK(length == LENGTH && mapwright_map_length(map) == LENGTH);
    const unsigned char *touched = data;
    unsigned long total = 0, expected = 0;
    for (size_t at = 0; at < length; at++) {
        CHECK(touched[at] == byte_at(at)); /* faults are served */
        expected += byte_at(at);
    }
    OK(mapwright_map_checked(map, sum, &total));
    CHECK(total == expected);
    FAILS(-EFAULT, mapwright_map_checked(map, NULL, NULL));
    OK(mapwright_map_checked(map, close_inside, map));
}

static void pins(mapwright_map *map) {
    mapwright_pin *pin, *other;
    const void *data;
    OK(mapwright_map_get(map, 5000, 6000, &pin, &data));
    for (size_t at = 0; at < 6000; at++) CHECK(((const unsigned char *)data)[at] == byte_at(5000 + at));
    FAILS(-ERANGE, mapwright_map_get(map, LENGTH, 1, &other, &data));
    CHECK(other == NULL && data == NULL);
    FAILS(-EBUSY, mapwright_map_close(map));
    OK(mapwright_map_evict(map, 0, 0));
    unsigned char resident[4];
    CHECK(mapwright_map_residency(map, 0, 4 * PAGE, resident, 4) == 4);
    CHECK(resident[1] == 1 && resident[2] == 1); /* what is pinned stays */
    OK(mapwright_pin_release(pin));
    FAILS(-EBADF, mapwright_pin_release(pin));
}

static void residency(mapwright_map *map) {
    unsigned char resident[101];
    OK(mapwright_map_advise(map, MAPWRIGHT_ADVICE_RANDOM));
    for (int tries = 0; tries < 1000 && mapwright_map_resident_bytes(map) > 0; tries++) {
        OK(mapwright_map_evict(map, 0, 0));
        usleep(1000); /* read-ahead that was begun may still come in */
    }
    CHECK(mapwright_map_resident_bytes(map) == 0);
    OK(mapwright_map_prefetch(map, 10 * PAGE, PAGE));
    CHECK(mapwright_map_residency(map, 0, LENGTH, resident, sizeof resident) == 101);
    CHECK(resident[10] == 1 && resident[9] == 0 && resident[100] == 0);
    FAILS(-EINVAL, mapwright_map_residency(map, 0, LENGTH, resident, 100));
    OK(mapwright_map_will_need(map, 0, 0));
    FAILS(-EINVAL, mapwright_map_advise(map, 9));
}

static void counters(void) {
    mapwright_pager *pager;
    mapwright_options *options;
    mapwright_map *map;
    OK(mapwright_pager_new(1 << 20, &pager));
    OK(mapwright_options_new(&options));
    OK(mapwright_options_set_pager(options, pager));
    OK(mapwright_options_set_strategy(options, MAPWRIGHT_STRATEGY_PAGER));
    OK(mapwright_map_open("file", options, &map));
    OK(mapwright_map_prefetch(map, 0, 2 * PAGE));
    mapwright_stats stats;
    stats.size = sizeof stats;
    OK(mapwright_pager_stats(pager, &stats));
    CHECK(stats.size == sizeof stats && stats.budget_bytes == 1 << 20 && stats.filled_bytes >= 2 * PAGE);

    /* A program that was compiled with an older header, whose structure was shorter. */
    struct {
        size_t size;
        uint64_t faults, hits, fills, canary;
    } old = {4 * sizeof(uint64_t), 0, 0, 0, 42};
    OK(mapwright_pager_stats(pager, (mapwright_stats *)&old));
    CHECK(old.size == 4 * sizeof(uint64_t) && old.fills == stats.fills && old.canary == 42);
    /* And one with a newer header. */
    struct {
        mapwright_stats known;
        uint64_t canary;
    } new = {.canary = 43};
    new.known.size = sizeof new;
    OK(mapwright_pager_stats(pager, &new.known));
    CHECK(new.known.size == sizeof stats && new.canary == 43);
    stats.size = 0;
    FAILS(-EINVAL, mapwright_pager_stats(pager, &stats));

    OK(mapwright_pager_close(pager)); /* the map keeps it */
    char byte;
    OK(mapwright_map_read_at(map, 50 * PAGE, &byte, 1));
    OK(mapwright_map_close(map));
    OK(mapwright_options_close(options));
}

/* A file that somebody cuts is an error, and no SIGBUS. */
static void truncated(mapwright_options *options) {
    mapwright_map *map;
    mapwright_pin *pin;
    OK(mapwright_map_open(make_file("cut", 50 * PAGE), options, &map));
    CHECK(truncate("cut", PAGE) == 0);
    char byte;
    FAILS(MAPWRIGHT_ERR_CHANGED, mapwright_map_read_at(map, 40 * PAGE, &byte, 1));
    CHECK(strstr(mapwright_last_error(), "truncated") != NULL);
    FAILS(MAPWRIGHT_ERR_CHANGED, mapwright_map_get(map, 40 * PAGE, 1, &pin, NULL));
    CHECK(pin == NULL);
    unsigned long total = 0;
    FAILS(MAPWRIGHT_ERR_CHANGED, mapwright_map_checked(map, sum, &total));
    OK(mapwright_map_close(map));
}

static void parts_and_strategies(mapwright_options *options) {
    mapwright_map *map;
    unsigned char byte;
    char reason[20];
    for (int strategy = MAPWRIGHT_STRATEGY_BUFFER; strategy <= MAPWRIGHT_STRATEGY_PAGER; strategy++) {
        OK(mapwright_options_set_strategy(options, strategy));
        OK(mapwright_options_set_range(options, 5001, 100));
        OK(mapwright_map_open("file", options, &map));
        CHECK(mapwright_map_strategy(map, reason, sizeof reason) == strategy);
        CHECK(strlen(reason) > 0 && strlen(reason) < sizeof reason);
        CHECK(mapwright_map_strategy(map, NULL, 0) == strategy);
        CHECK(mapwright_map_length(map) == 100);
        OK(mapwright_map_read_at(map, 99, &byte, 1));
        CHECK(byte == byte_at(5100));
        mapwright_pin *pin;
        const void *data;
        OK(mapwright_map_get(map, 1, 2, &pin, &data));
        CHECK(memcmp(data, (unsigned char[]){byte_at(5002), byte_at(5003)}, 2) == 0);
        CHECK(mapwright_map_residency(map, 0, 100, &byte, 1) == 1 && byte == 1); /* as it has just been read */
        OK(mapwright_pin_release(pin));
        OK(mapwright_map_prefetch(map, 0, 0));
        FAILS(-EACCES, mapwright_map_write_at(map, 0, "x", 1));
        FAILS(-EACCES, mapwright_map_resize(map, 1));
        OK(mapwright_map_close(map));
        OK(mapwright_options_set_range(options, 0, 0));
    }
    OK(mapwright_map_open("file", NULL, &map)); /* the defaults */
    OK(mapwright_map_close(map));
    FAILS(-EBADF, mapwright_map_length(map));

    int fd = open("file", O_RDONLY);
    OK(mapwright_map_open_fd(fd, 0, options, &map));
    FAILS(-EACCES, mapwright_map_open_fd(fd, 1, options, &(mapwright_map *){NULL}));
    close(fd);
    OK(mapwright_map_read_at(map, 7, &byte, 1));
    CHECK(byte == byte_at(7));
    OK(mapwright_map_close(map));
    FAILS(-EBADF, mapwright_map_open_fd(fd, 0, options, &map));
    FAILS(-EBADF, mapwright_map_open_fd(-1, 0, options, &map));
}

int main(void) {
    mapwright_options *options = make_options(2 << 20);
    mapwright_map *map;
    OK(mapwright_map_open(make_file("file", LENGTH), options, &map));
    bytes(map);
    pins(map);
    residency(map);
    OK(mapwright_map_close(map));
    FAILS(-EBADF, mapwright_map_close(map));
    counters();
    truncated(options);
    parts_and_strategies(options);
    OK(mapwright_options_close(options));
    puts("reading: ok");
    return 0;
}
