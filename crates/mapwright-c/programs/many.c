/* Many ranges held by one pin: what is held and where, what is refused, and that all of it is let go. */
#include "check.h"

#define LENGTH (100 * PAGE + 123)
#define COUNT(array) (sizeof(array) / sizeof *(array))

/* Out of order, one twice, and one that is empty. */
static const mapwright_range RANGES[] = {
    {90 * PAGE, 2 * PAGE}, {0, 1}, {5000, 6000}, {5000, 10}, {LENGTH - 5, 5}, {LENGTH, 0},
};

static void check(const mapwright_bytes *bytes) {
    for (size_t i = 0; i < COUNT(RANGES); i++) {
        CHECK(bytes[i].length == RANGES[i].length);
        const unsigned char *data = bytes[i].data;
        for (size_t at = 0; at < bytes[i].length; at++) CHECK(data[at] == byte_at(RANGES[i].offset + at));
    }
}

static uint64_t resident(mapwright_map *map) { return (uint64_t)mapwright_map_resident_bytes(map); }

/* Drops all that nothing holds; what is left, in pages. */
static uint64_t held_pages(mapwright_map *map) {
    for (int tries = 0; tries < 100; tries++) {
        OK(mapwright_map_evict(map, 0, 0));
        usleep(1000); /* read-ahead that was begun may still come in */
    }
    return resident(map) / PAGE;
}

static void held(mapwright_map *map) {
    mapwright_pin *pin, *other;
    mapwright_bytes bytes[COUNT(RANGES)], others[COUNT(RANGES)];
    OK(mapwright_map_advise(map, MAPWRIGHT_ADVICE_RANDOM));
    OK(mapwright_map_get_many(map, RANGES, COUNT(RANGES), &pin, bytes));
    check(bytes);
    OK(mapwright_map_get_many(map, RANGES, COUNT(RANGES), &other, others)); /* again, by another pin */
    CHECK(bytes[3].data == others[3].data);
    FAILS(-EBUSY, mapwright_map_close(map));
    CHECK(held_pages(map) == 6); /* 90 and 91, 0, 1 and 2, and 100 */
    check(bytes);
    OK(mapwright_pin_release(other));
    FAILS(-EBADF, mapwright_pin_release(other));
    CHECK(held_pages(map) == 6);
    check(bytes);
    OK(mapwright_pin_release(pin));
    CHECK(held_pages(map) == 0); /* as many were let go as were taken */
}

static void refused(mapwright_map *map) {
    mapwright_pin *pin;
    mapwright_bytes bytes[2] = {{NULL, 7}, {NULL, 7}};
    mapwright_range ranges[2] = {{0, 1}, {LENGTH, 1}};
    FAILS(-ERANGE, mapwright_map_get_many(map, ranges, 2, &pin, bytes));
    CHECK(pin == NULL && bytes[0].length == 7);
    ranges[1] = (mapwright_range){UINT64_MAX, 2};
    FAILS(-ERANGE, mapwright_map_get_many(map, ranges, 2, &pin, bytes));
    FAILS(-EFAULT, mapwright_map_get_many(map, NULL, 1, &pin, bytes));
    FAILS(-EFAULT, mapwright_map_get_many(map, ranges, 1, &pin, NULL));
    FAILS(-EFAULT, mapwright_map_get_many(map, ranges, 1, NULL, bytes));
    FAILS(-EFAULT, mapwright_map_get_many(NULL, ranges, 1, &pin, bytes));
    FAILS(-EINVAL, mapwright_map_get_many(map, ranges, SIZE_MAX / 16 + 2, &pin, bytes));
    FAILS(-EINVAL, mapwright_map_get_many(map, ranges, SIZE_MAX / 32 + 2, &pin, bytes));
    FAILS(-EINVAL, mapwright_map_get_many(map, (void *)((char *)ranges + 1), 1, &pin, bytes));
    FAILS(-EINVAL, mapwright_map_get_many(map, ranges, 1, &pin, (void *)((char *)bytes + 1)));
    OK(mapwright_map_get_many(map, NULL, 0, &pin, NULL)); /* nothing */
    OK(mapwright_pin_release(pin));
    OK(mapwright_map_get_many(map, ranges, 1, &pin, bytes));
    CHECK(bytes[0].length == 1 && bytes[1].length == 7);
    OK(mapwright_pin_release(pin));
}

/* All of them together must fit the budget. */
static void too_many(void) {
    enum { PAGES = 100 };
    mapwright_options *options = make_options(256 << 10);
    mapwright_map *map;
    mapwright_pin *pin;
    mapwright_range ranges[PAGES];
    mapwright_bytes bytes[PAGES];
    for (size_t i = 0; i < PAGES; i++) ranges[i] = (mapwright_range){i * PAGE, 1};
    OK(mapwright_map_open("file", options, &map));
    FAILS(MAPWRIGHT_ERR_BUDGET, mapwright_map_get_many(map, ranges, PAGES, &pin, bytes));
    OK(mapwright_map_get_many(map, ranges, 10, &pin, bytes));
    OK(mapwright_pin_release(pin));
    OK(mapwright_map_close(map));
    FAILS(-EBADF, mapwright_map_get_many(map, ranges, 1, &pin, bytes));
    OK(mapwright_options_close(options));
}

int main(void) {
    mapwright_options *options = make_options(2 << 20);
    mapwright_map *map;
    mapwright_pin *pin;
    mapwright_bytes bytes[COUNT(RANGES)];
    OK(mapwright_map_open(make_file("file", LENGTH), options, &map));
    held(map);
    refused(map);
    OK(mapwright_map_close(map));
    too_many();

    /* Of a map that is written: it is neither resized nor rolled back meanwhile. */
    OK(mapwright_map_open_mut("file", options, &map));
    OK(mapwright_map_get_many(map, RANGES, COUNT(RANGES), &pin, bytes));
    check(bytes);
    FAILS(-EBUSY, mapwright_map_resize(map, 2 * LENGTH));
    OK(mapwright_map_write_at(map, 0, "!", 1));
    CHECK(*(const char *)bytes[1].data == '!');
    OK(mapwright_map_write_at(map, 0, (unsigned char[]){byte_at(0)}, 1));
    OK(mapwright_pin_release(pin));
    OK(mapwright_map_close(map));

    for (int strategy = MAPWRIGHT_STRATEGY_BUFFER; strategy <= MAPWRIGHT_STRATEGY_KERNEL; strategy++) {
        OK(mapwright_options_set_strategy(options, strategy));
        OK(mapwright_map_open("file", options, &map));
        OK(mapwright_map_get_many(map, RANGES, COUNT(RANGES), &pin, bytes));
        check(bytes);
        OK(mapwright_pin_release(pin));
        OK(mapwright_map_close(map));
    }
    OK(mapwright_options_close(options));
    puts("many: ok");
    return 0;
}
