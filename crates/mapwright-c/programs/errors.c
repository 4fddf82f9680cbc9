/* Versions, errors, and misuse of handles: everything is a code, nothing a crash. */
#include "check.h"

static void versions(void) {
    CHECK(mapwright_abi_version() == MAPWRIGHT_ABI_VERSION);
    int major, minor, patch;
    CHECK(sscanf(mapwright_version(), "%d.%d.%d", &major, &minor, &patch) == 3);
    CHECK(mapwright_version_number() == major * 1000000 + minor * 1000 + patch);
}

static void texts(void) {
    CHECK(mapwright_last_error_code() == 0 && *mapwright_last_error() == 0);
    CHECK(strcmp(mapwright_strerror(-ENOENT), strerror(ENOENT)) == 0);
    CHECK(strcmp(mapwright_strerror(ENOENT), strerror(ENOENT)) == 0);
    CHECK(strstr(mapwright_strerror(MAPWRIGHT_ERR_CHANGED), "changed") != NULL);
    CHECK(*mapwright_strerror(-12345678) && *mapwright_strerror(INT32_MIN));

    mapwright_map *map = (mapwright_map *)1;
    FAILS(-ENOENT, mapwright_map_open("no such file", NULL, &map));
    CHECK(map == NULL);
    CHECK(strstr(mapwright_last_error(), "no such file") != NULL);
    const char *text = mapwright_last_error();
    OK(mapwright_abi_version()); /* a success leaves it alone */
    CHECK(text == mapwright_last_error() && mapwright_last_error_code() == -ENOENT);
    FAILS(-ENODEV, mapwright_map_open("/", NULL, &map));
}

static void null(void) {
    FAILS(-EFAULT, mapwright_map_open(NULL, NULL, NULL));
    FAILS(-EFAULT, mapwright_map_open("x", NULL, NULL));
    FAILS(-EFAULT, mapwright_map_close(NULL));
    FAILS(-EFAULT, mapwright_map_length(NULL));
    FAILS(-EFAULT, mapwright_map_data(NULL, NULL, NULL));
    FAILS(-EFAULT, mapwright_pin_release(NULL));
    FAILS(-EFAULT, mapwright_pager_new(0, NULL));
    FAILS(-EFAULT, mapwright_pager_close(NULL));
    FAILS(-EFAULT, mapwright_options_new(NULL));
    FAILS(-EFAULT, mapwright_options_close(NULL));
    FAILS(-EFAULT, mapwright_options_set_pager(NULL, NULL));
    FAILS(-EFAULT, mapwright_mapping_close(NULL));
    FAILS(-EFAULT, mapwright_mapping_anonymous(10, PROT_READ, NULL));
    FAILS(-EFAULT, mapwright_shm_open(NULL, 0, 0600, 0, NULL));
    FAILS(-EFAULT, mapwright_shm_unlink(NULL));
    FAILS(-EFAULT, mapwright_shm_close(NULL));
}

static void misuse(void) {
    mapwright_pager *pager, *global;
    OK(mapwright_pager_new(1 << 20, &pager));
    OK(mapwright_pager_global(&global));
    CHECK(pager != global);
    FAILS(-EFAULT, mapwright_pager_stats(pager, NULL));
    FAILS(-EBADF, mapwright_map_close((mapwright_map *)pager));       /* of another kind */
    FAILS(-EBADF, mapwright_options_close((mapwright_options *)"x")); /* none at all */
    OK(mapwright_pager_close(pager));
    FAILS(-EBADF, mapwright_pager_close(pager)); /* twice */
    OK(mapwright_pager_close(global));
    FAILS(-EINVAL, mapwright_pager_new(1, &pager));
    CHECK(pager == NULL);

    mapwright_options *options;
    OK(mapwright_options_new(&options));
    FAILS(-EINVAL, mapwright_options_set_strategy(options, 77));
    FAILS(-EINVAL, mapwright_options_set_advice(options, -1));
    FAILS(-EINVAL, mapwright_options_set_faults(options, 2));
    FAILS(-EINVAL, mapwright_options_set_frames(options, 3));
    FAILS(-EINVAL, mapwright_options_set_range(options, UINT64_MAX, 2));
    OK(mapwright_options_set_block_size(options, 4097)); /* found when a map is opened */
    OK(mapwright_options_set_strategy(options, MAPWRIGHT_STRATEGY_PAGER));
    mapwright_map *map;
    FAILS(-EINVAL, mapwright_map_open(make_file("odd-block", 10), options, &map));
    OK(mapwright_options_close(options));
    FAILS(-EBADF, mapwright_options_set_direct(options, 1));
    FAILS(-EBADF, mapwright_map_open("odd-block", options, &map));
}

int main(void) {
    versions();
    texts();
    null();
    misuse();
    puts("errors: ok");
    return 0;
}
